"""Frames to tokens and tokens to increments."""

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from models.patches import crop, pad_to_multiple, patchify, unpatchify
from models.video_transformer.attention import Tokens


class Embedding(nn.Module):
    """History patches through one linear map, and one learned query for every patch of the future."""

    def __init__(self, channels: int, horizon: int, patch: int, dim: int) -> None:
        super().__init__()
        self.horizon, self.patch = horizon, patch
        self.linear = nn.Linear(channels * patch**2, dim)
        self.query = nn.Parameter(0.02 * torch.randn(dim))

    def forward(self, frames: Float[Tensor, "b t c h w"]) -> tuple[Tokens, int, int]:
        """Tokens (b, t + horizon, n, d) of frames without NaN, and the rows and columns of the n patches."""
        patches = patchify(pad_to_multiple(frames, self.patch), self.patch)
        rows, columns = patches.shape[-2:]
        history = self.linear(rearrange(patches, "b t c h w -> b t (h w) c"))
        future = repeat(self.query, "d -> b f n d", b=len(frames), f=self.horizon, n=rows * columns)
        return torch.cat([history, future.to(history.dtype)], dim=1), rows, columns


class Readout(nn.Module):
    """Tokens of the future to increments of the field; 0 at first, whatever the tokens are."""

    def __init__(self, channels: int, patch: int, dim: int, *, smooth: bool) -> None:
        super().__init__()
        self.patch = patch
        self.norm = nn.LayerNorm(dim)
        self.linear = nn.Linear(dim, channels * patch**2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1, bias=False) if smooth else None
        if self.smooth is not None:
            nn.init.dirac_(self.smooth.weight)  # changes nothing at first

    def forward(
        self, tokens: Tokens, rows: int, columns: int, height: int, width: int
    ) -> Float[Tensor, "b t c {height} {width}"]:
        """Increments on the grid of the frames."""
        cells = rearrange(self.linear(self.norm(tokens)), "b t (h w) c -> b t c h w", h=rows, w=columns)
        field = unpatchify(cells, self.patch)
        if self.smooth is not None:
            flat = self.smooth(rearrange(field, "b t c h w -> (b t) c h w"))
            field = rearrange(flat, "(b t) c h w -> b t c h w", b=len(tokens))
        return crop(field, height, width)
