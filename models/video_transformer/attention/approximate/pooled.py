"""Attention to keys and values on a coarser grid of each frame.

Spatial-reduction attention: Wang et al. 2021, "Pyramid Vision Transformer", section 3.3, without its layer norm. Cells
that are not valid leave a square's mean as in partial convolution (Liu et al. 2018).
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.core import Attention, score_macs
from fieldcast.models.video_transformer.attention.interface import Grid, Valid, flatten


def square_means(
    grid: Grid, stride: int, valid: Valid | None = None
) -> tuple[Float[Tensor, "b t h_s w_s d"], Bool[Tensor, "b t h_s w_s"]]:
    """Return the means of the valid cells of every square, and the mask of squares with any.

    Squares at the lower and right border may stick out of the grid.
    """
    cells = grid.new_ones(grid.shape[:4]) if valid is None else valid.to(grid.dtype)
    border = (0, -grid.shape[3] % stride, 0, -grid.shape[2] % stride)
    frames = functional.pad(rearrange(grid * cells[..., None], "b t h w d -> (b t) d h w"), border)
    share = functional.avg_pool2d(functional.pad(rearrange(cells, "b t h w -> (b t) 1 h w"), border), stride)
    mean = functional.avg_pool2d(frames, stride) / torch.where(share > 0, share, 1.0).to(frames.dtype)
    b = len(grid)
    return rearrange(mean, "(b t) d h w -> b t h w d", b=b), rearrange(share > 0, "(b t) 1 h w -> b t h w", b=b)


class Pooled(nn.Module):
    """Every token's mix of the means of `stride` x `stride` tokens of all frames; with stride 1, of all tokens."""

    def __init__(self, dim: int, heads: int, *, stride: int = 2) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        self.dim, self.stride = dim, stride
        self.attention = Attention(dim, heads)

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, mixed over all its squares."""
        squares, any_valid = square_means(grid, self.stride, valid)
        allowed = None if valid is None else rearrange(any_valid, "b t h w -> b 1 1 (t h w)")
        mixed: Tensor = self.attention(flatten(grid), flatten(squares), allowed=allowed)
        _, t, h, w, _ = grid.shape
        return rearrange(mixed, "b (t h w) d -> b t h w d", t=t, h=h, w=w)

    def macs(self, t: int, h: int, w: int) -> int:
        """Return 2 N d^2 + 2 M d^2 + 2 N M d for N tokens in M squares."""
        tokens, squares = t * h * w, self._squares(t, h, w)
        return 2 * (tokens + squares) * self.dim**2 + score_macs(tokens, squares, self.dim)

    def held(self, t: int, h: int, w: int) -> int:
        """Return the number of values of the squares."""
        return self._squares(t, h, w) * self.dim

    def _squares(self, t: int, h: int, w: int) -> int:
        return t * -(-h // self.stride) * -(-w // self.stride)
