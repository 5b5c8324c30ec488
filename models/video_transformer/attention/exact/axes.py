"""Exact attention over all tokens, or along axes of the grid: time, space, rows or columns.

Joint attention is that of ViViT (Arnab et al. 2021, model 1); time or space alone is the factorised form of its model
3; rows or columns alone is axial attention (Ho et al. 2019).
"""

import math

from einops import rearrange
from jaxtyping import Bool
from torch import Tensor, nn

from fieldcast.models.video_transformer.attention.core import Attention, Rotate, projection_macs, score_macs
from fieldcast.models.video_transformer.attention.interface import Grid, Valid

AXES = {  # letter: axes of (t, h, w) that are mixed, and how they become one
    "J": ((0, 1, 2), "b t h w ... -> b (t h w) ..."),
    "T": ((0,), "b t h w ... -> (b h w) t ..."),
    "S": ((1, 2), "b t h w ... -> (b t) (h w) ..."),
    "H": ((1,), "b t h w ... -> (b t w) h ..."),
    "W": ((2,), "b t h w ... -> (b t h) w ..."),
}


class AlongAxes(nn.Module):
    """Multi-head attention among the tokens that differ in the axes of one letter of `AXES` only."""

    def __init__(self, dim: int, heads: int, along: str, *, impl: str = "sdpa") -> None:
        super().__init__()
        if along not in AXES:
            raise ValueError(f"along must be one of {', '.join(AXES)}, got {along!r}")
        self.dim, self.along = dim, along
        self.axes, self.pattern = AXES[along]
        self.attention = Attention(dim, heads, impl=impl)

    def forward(self, grid: Grid, valid: Valid | None = None, rotate: Rotate | None = None) -> Grid:
        """Return the grid, mixed along the axes; `rotate` turns queries and keys (b_rest, heads, n, d) by position."""
        lines = rearrange(grid, self.pattern).contiguous()  # (b_rest, n, d), or each linear map would copy it
        allowed: Bool[Tensor, "b_rest 1 1 n"] | None = None
        if valid is not None:
            allowed = rearrange(valid, self.pattern)[:, None, None]
        mixed: Tensor = self.attention(lines, allowed=allowed, rotate=rotate)
        left, right = self.pattern.split(" -> ")
        b, t, h, w, _ = grid.shape
        return rearrange(mixed, f"{right} -> {left}", b=b, t=t, h=h, w=w)

    def macs(self, t: int, h: int, w: int) -> int:
        """Return 4 N d^2 + 2 N L d for N tokens in lines of L."""
        tokens, line = t * h * w, self._line(t, h, w)
        return projection_macs(tokens, self.dim) + score_macs(tokens, line, self.dim)

    def held(self, t: int, h: int, w: int) -> int:
        """Return the number of weights of all heads if they are written out."""
        if self.attention.impl == "sdpa":
            return 0
        return self.attention.heads * t * h * w * self._line(t, h, w)

    def _line(self, t: int, h: int, w: int) -> int:
        return math.prod((t, h, w)[axis] for axis in self.axes)
