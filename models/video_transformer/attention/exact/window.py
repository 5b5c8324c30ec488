"""Exact attention inside windows of the space-time grid, which may be shifted by half a window.

Liu et al. 2022, "Video Swin Transformer", section 3.2.
"""

import math

import torch
from einops import rearrange
from jaxtyping import Bool, Int64, Shaped
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.core import Attention, projection_macs, score_macs
from fieldcast.models.video_transformer.attention.interface import Grid, Valid

Sizes = tuple[int, int, int]  # along time, height, width


def fitted(grid: Sizes, window: Sizes) -> Sizes:
    """Return the window, made smaller along each axis if equally many would still cover the grid.

    So it is no larger than the grid, and stays as it is if it divides the grid.
    """
    t, h, w = (math.ceil(size / math.ceil(size / most)) for size, most in zip(grid, window, strict=True))
    return t, h, w


def whole(grid: Sizes, window: Sizes) -> Sizes:
    """Return the sizes of the grid extended to whole windows."""
    t, h, w = (math.ceil(size / part) * part for size, part in zip(grid, window, strict=True))
    return t, h, w


def half(grid: Sizes, window: Sizes) -> Sizes:
    """Return half a window along each axis that more than one window covers, else 0."""
    t, h, w = (part // 2 if part < size else 0 for size, part in zip(grid, window, strict=True))
    return t, h, w


def extended(grid: Shaped[Tensor, "b t h w *d"], sizes: Sizes) -> Shaped[Tensor, "b t_end h_end w_end *d"]:
    """Return the grid with zeros (False) behind its end along each axis until it has the sizes."""
    _, t, h, w = grid.shape[:4]
    padding = (0, sizes[2] - w, 0, sizes[1] - h, 0, sizes[0] - t)
    return functional.pad(grid, (0, 0) * (grid.ndim - 4) + padding)


def rolled(grid: Shaped[Tensor, "b t h w *d"], by: Sizes) -> Shaped[Tensor, "b t h w *d"]:
    """Return the grid moved along its axes; what leaves at one end comes in at the other."""
    return torch.roll(grid, by, (1, 2, 3)) if any(by) else grid


def cut(grid: Shaped[Tensor, "b t h w *d"], window: Sizes) -> Shaped[Tensor, "b_windows n *d"]:
    """Return the windows of all samples, one after the other."""
    t, h, w = window
    return rearrange(grid, "b (nt t) (nh h) (nw w) ... -> (b nt nh nw) (t h w) ...", t=t, h=h, w=w)


def joined(windows: Shaped[Tensor, "b_windows n *d"], window: Sizes, sizes: Sizes) -> Shaped[Tensor, "b t h w *d"]:
    """Return the inverse of `cut`, for a grid of the sizes."""
    t, h, w = window
    nt, nh, nw = (size // part for size, part in zip(sizes, window, strict=True))
    back = "(b nt nh nw) (t h w) ... -> b (nt t) (nh h) (nw w) ..."
    return rearrange(windows, back, t=t, h=h, w=w, nt=nt, nh=nh, nw=nw)


def sides(sizes: Sizes, shift: Sizes, device: torch.device) -> Int64[Tensor, "1 t h w"]:
    """Return a number for each token of a grid rolled back by the shift: equal unless tokens met over an edge."""
    t, h, w = (torch.arange(size, device=device) >= size - by for size, by in zip(sizes, shift, strict=True))
    return (t[:, None, None] + 2 * h[:, None] + 4 * w.long())[None]


class Window(nn.Module):
    """Multi-head attention among the tokens of each window; `window` is the largest size in (t, h, w)."""

    def __init__(self, dim: int, heads: int, *, window: Sizes = (4, 4, 4), shifted: bool = False) -> None:
        super().__init__()
        if len(window) != 3 or min(window) < 1:
            raise ValueError(f"window must be three sizes of 1 or more, got {window}")
        self.dim, self.window, self.shifted = dim, window, shifted
        self.attention = Attention(dim, heads)

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, each token mixed with its window; none sees padding, or over an edge of the grid."""
        _, t, h, w, _ = grid.shape
        window, sizes, shift = self._layout(t, h, w)
        if sizes != (t, h, w):
            valid = extended(grid.new_ones(grid.shape[:4], dtype=torch.bool) if valid is None else valid, sizes)
            grid = extended(grid, sizes)
        back = (-shift[0], -shift[1], -shift[2])
        allowed = None if valid is None else cut(rolled(valid, back), window)[:, None, None]
        if any(shift):
            together = self._together(len(grid), window, sizes, shift, grid.device)
            allowed = together if allowed is None else allowed & together
        mixed = self.attention(cut(rolled(grid, back), window), allowed=allowed)
        return rolled(joined(mixed, window, sizes), shift)[:, :t, :h, :w]

    def macs(self, t: int, h: int, w: int) -> int:
        """Return 4 N d^2 + 2 N L d for N tokens, padding included, in windows of L."""
        window, sizes, _ = self._layout(t, h, w)
        tokens, length = math.prod(sizes), math.prod(window)
        return projection_macs(tokens, self.dim) + score_macs(tokens, length, self.dim)

    def held(self, t: int, h: int, w: int) -> int:
        """Return the size of the mask of shifted windows, which heads share; 0 without a shift."""
        window, sizes, shift = self._layout(t, h, w)
        return math.prod(sizes) * math.prod(window) * any(shift)

    def _layout(self, t: int, h: int, w: int) -> tuple[Sizes, Sizes, Sizes]:
        window = fitted((t, h, w), self.window)
        sizes = whole((t, h, w), window)
        return window, sizes, half(sizes, window) if self.shifted else (0, 0, 0)

    def _together(
        self, b: int, window: Sizes, sizes: Sizes, shift: Sizes, device: torch.device
    ) -> Bool[Tensor, "b_windows 1 n n"]:
        side = cut(sides(sizes, shift, device), window)
        return (side[:, None, :, None] == side[:, None, None]).repeat(b, 1, 1, 1)
