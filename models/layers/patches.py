"""Frames to patches and back, on grids of any size."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def patchify(frames: Float[Tensor, "*any c h w"], patch: int) -> Float[Tensor, "*any c_patch h_patch w_patch"]:
    """Return every `patch` x `patch` square as one cell with patch * patch * c channels (space to depth)."""
    return rearrange(frames, "... c (h ph) (w pw) -> ... (ph pw c) h w", ph=patch, pw=patch)


def unpatchify(patches: Float[Tensor, "*any c_patch h_patch w_patch"], patch: int) -> Float[Tensor, "*any c h w"]:
    """Return the inverse of `patchify` (depth to space)."""
    return rearrange(patches, "... (ph pw c) h w -> ... c (h ph) (w pw)", ph=patch, pw=patch)


def pad_to_multiple(frames: Float[Tensor, "b t c h w"], multiple: int) -> Float[Tensor, "b t c h_pad w_pad"]:
    """Return frames extended below and to the right to multiples: mirrored, or repeated if too small."""
    batch, _, _, height, width = frames.shape
    flat = rearrange(frames, "b t c h w -> (b t) c h w")
    flat = _extend(flat, (0, 0, 0, -height % multiple), mirror=-height % multiple < height)
    flat = _extend(flat, (0, -width % multiple, 0, 0), mirror=-width % multiple < width)
    return rearrange(flat, "(b t) c h w -> b t c h w", b=batch)


def crop(frames: Float[Tensor, "*any h_pad w_pad"], height: int, width: int) -> Float[Tensor, "*any h w"]:
    """Return the first rows and columns of padded frames: undoes `pad_to_multiple`."""
    return frames[..., :height, :width]


def _extend(frames: Tensor, padding: tuple[int, int, int, int], *, mirror: bool) -> Tensor:
    if not any(padding):
        return frames
    return functional.pad(frames, padding, mode="reflect" if mirror else "replicate")
