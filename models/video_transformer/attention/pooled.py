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
from fieldcast.models.video_transformer.attention.flat import flatten
from fieldcast.models.video_transformer.attention.mixer import Grid, Valid


def square_means(
    grid: Grid, stride: int, valid: Valid | None = None, weight: Float[Tensor, "d d stride stride"] | None = None
) -> tuple[Float[Tensor, "b t h_s w_s d"], Bool[Tensor, "b t h_s w_s"]]:
    """Means of the valid cells of every square, or what a convolution makes of them; and which squares have any.

    Squares at the lower and right border may stick out of the grid.
    """
    cells = grid.new_ones(grid.shape[:4]) if valid is None else valid.to(grid.dtype)
    border = (0, -grid.shape[3] % stride, 0, -grid.shape[2] % stride)
    frames = functional.pad(rearrange(grid * cells[..., None], "b t h w d -> (b t) d h w"), border)
    share = functional.avg_pool2d(functional.pad(rearrange(cells, "b t h w -> (b t) 1 h w"), border), stride)
    total = (
        functional.avg_pool2d(frames, stride) if weight is None else functional.conv2d(frames, weight, stride=stride)
    )
    mean = total / torch.where(share > 0, share, 1.0).to(total.dtype)
    b = len(grid)
    return rearrange(mean, "(b t) d h w -> b t h w d", b=b), rearrange(share > 0, "(b t) 1 h w -> b t h w", b=b)


class Pooled(nn.Module):
    """Every token's mix of squares of `stride` x `stride` tokens of all frames; with stride 1, of all tokens.

    Squares are means, or a learned convolution (`conv`) that starts as the mean.
    """

    def __init__(
        self, dim: int, heads: int, *, stride: int = 2, pooling: str = "mean", dropout: float = 0.0, impl: str = "sdpa"
    ) -> None:
        super().__init__()
        if stride < 1:
            raise ValueError(f"stride must be at least 1, got {stride}")
        if pooling not in ("mean", "conv"):
            raise ValueError(f"pooling must be mean or conv, got {pooling!r}")
        self.dim, self.stride = dim, stride
        self.attention = Attention(dim, heads, dropout=dropout, impl=impl)
        self.weight: nn.Parameter | None = None
        if pooling == "conv":
            mean = torch.eye(dim)[..., None, None].expand(-1, -1, stride, stride) / stride**2
            self.weight = nn.Parameter(mean.contiguous())

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """The grid, mixed over all its squares."""
        squares, any_valid = square_means(grid, self.stride, valid, self.weight)
        allowed = None if valid is None else rearrange(any_valid, "b t h w -> b 1 1 (t h w)")
        mixed: Tensor = self.attention(flatten(grid), flatten(squares), allowed=allowed)
        _, t, h, w, _ = grid.shape
        return rearrange(mixed, "b (t h w) d -> b t h w d", t=t, h=h, w=w)

    def macs(self, t: int, h: int, w: int) -> int:
        """2 N d^2 + 2 M d^2 + 2 N M d for N tokens in M squares, and M d^2 stride^2 where the squares are learned."""
        tokens, squares = t * h * w, self._squares(t, h, w)
        learned = 0 if self.weight is None else squares * self.weight.numel()
        return 2 * (tokens + squares) * self.dim**2 + score_macs(tokens, squares, self.dim) + learned

    def held(self, t: int, h: int, w: int) -> int:
        """The squares, and weights of all heads where they are written out."""
        squares = self._squares(t, h, w)
        weights = 0 if self.attention.impl == "sdpa" else self.attention.heads * t * h * w * squares
        return squares * self.dim + weights

    def _squares(self, t: int, h: int, w: int) -> int:
        return t * -(-h // self.stride) * -(-w // self.stride)
