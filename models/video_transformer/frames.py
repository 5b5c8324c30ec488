"""Decoding of one lead after the other: each frame is made from the frames before it and the encoded history."""

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fieldcast.models.layers.missing import fill_and_mask
from fieldcast.models.layers.patches import pad_to_multiple, patchify
from fieldcast.models.video_transformer.attention.decoder import Cache, Decoder
from fieldcast.models.video_transformer.attention.interface import Grid, flatten
from fieldcast.models.video_transformer.attention.masks import not_later
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.models.video_transformer.queries import Positions, flat_positions
from fieldcast.models.video_transformer.tokens import stem_of


def any_valid(masked: Float[Tensor, "b f c h w"], patch: int) -> Bool[Tensor, "b n"]:
    """Return the mask of patches with a valid cell; the last channel is the mask of cells."""
    mask = patchify(pad_to_multiple(masked[:, :, -1:], patch), patch)
    return reduce(mask > 0.5, "b f c h w -> b (f h w)", "any")


class FrameDecoder(nn.Module):
    """From the frame at each step's start to the tokens of that at its end.

    A token sees all tokens of its own and earlier frames, except patches that are missing.
    """

    def __init__(self, options: VideoTransformerOptions, channels: int) -> None:
        super().__init__()
        self.stem = stem_of(channels + 1, options)  # + 1: valid mask
        hidden = round(options.mlp_ratio * options.dim)
        self.decoder = Decoder(options.dim, options.heads, hidden, options.decoder_layers, dropout=options.dropout)

    def start(self, memory: Grid, memory_positions: Positions | None) -> Cache:
        """Return the cache before the first step."""
        return self.decoder.start(flatten(memory), flat_positions(memory_positions))

    def forward(
        self,
        frames: Float[Tensor, "b f c h w"],
        cache: Cache,
        positions: Float[Tensor, "f h_patch w_patch d"] | None,
    ) -> Float[Tensor, "b f h_patch w_patch d"]:
        """Return decoded tokens of the next f steps from the frames at their starts; NaN is a missing cell.

        The cache remembers the steps before: all steps at once, or one at a time, give the same.
        """
        masked = fill_and_mask(frames)
        grid, _ = self.stem(masked)
        _, f, h, w, _ = grid.shape
        where = None if positions is None else positions.to(grid.dtype)
        grid = grid if where is None else grid + where
        before = 0 if cache.valid is None else cache.valid.shape[1] // (h * w)
        times = torch.arange(before + f, device=grid.device).repeat_interleave(h * w)
        decoded = self.decoder(
            flatten(grid),
            cache,
            valid=any_valid(masked, self.stem.patch),
            allowed=not_later(times[before * h * w :], times),
            positions=flat_positions(where),
        )
        frame_tokens: Grid = rearrange(decoded, "b (f h w) d -> b f h w d", f=f, h=h, w=w)
        return frame_tokens
