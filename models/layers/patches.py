"""Frames to patches and back, on grids of any size."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def patchify(frames: Float[Tensor, "*any c h w"], patch: int) -> Float[Tensor, "*any c_patch h_patch w_patch"]:
    """Space to depth: every `patch` x `patch` square becomes one cell with patch * patch * c channels."""
    return rearrange(frames, "... c (h ph) (w pw) -> ... (ph pw c) h w", ph=patch, pw=patch)


def unpatchify(patches: Float[Tensor, "*any c_patch h_patch w_patch"], patch: int) -> Float[Tensor, "*any c h w"]:
    """Depth to space: the inverse of `patchify`."""
    return rearrange(patches, "... (ph pw c) h w -> ... c (h ph) (w pw)", ph=patch, pw=patch)


def pad_to_multiple(frames: Float[Tensor, "b t c h w"], multiple: int) -> Float[Tensor, "b t c h_pad w_pad"]:
    """Frames extended below and to the right until h and w are multiples: mirrored, or repeated where too small."""
    batch, _, _, height, width = frames.shape
    flat = rearrange(frames, "b t c h w -> (b t) c h w")
    flat = _extend(flat, (0, 0, 0, -height % multiple), mirror=-height % multiple < height)
    flat = _extend(flat, (0, -width % multiple, 0, 0), mirror=-width % multiple < width)
    return rearrange(flat, "(b t) c h w -> b t c h w", b=batch)


def crop(frames: Float[Tensor, "*any h_pad w_pad"], height: int, width: int) -> Float[Tensor, "*any h w"]:
    """The first rows and columns of padded frames: undoes `pad_to_multiple`."""
    return frames[..., :height, :width]


def _extend(frames: Tensor, padding: tuple[int, int, int, int], *, mirror: bool) -> Tensor:
    if not any(padding):
        return frames
    return functional.pad(frames, padding, mode="reflect" if mirror else "replicate")
