"""Interface of every attention pattern: a grid of space-time tokens in, the same grid mixed out."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

Grid = Float[Tensor, "b t h w d"]
Valid = Bool[Tensor, "b t h w"]  # False: no token may attend to this one
ValidTokens = Bool[Tensor, "b n"]


@runtime_checkable
class AttentionPattern(Protocol):
    """Attention pattern: an `nn.Module` built from (dim, heads, and options of the pattern)."""

    def __call__(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return each token's mix of the `valid` tokens that the pattern lets it see."""

    def macs(self, t: int, h: int, w: int) -> int:
        """Return the multiply-adds of one sample: exactly half of the FLOPs that torch counts in the plain form."""

    def held(self, t: int, h: int, w: int) -> int:
        """Return how many values one sample holds for the backward pass beyond those of the projected tokens.

        0 for fused attention; heads * n * m for weights that are written out.
        """


def flatten(grid: Grid) -> Float[Tensor, "b t*h*w d"]:
    """Return the tokens of each sample as one line, frame by frame, row by row."""
    return rearrange(grid, "b t h w d -> b (t h w) d")


def flatten_valid(valid: Valid | None) -> ValidTokens | None:
    """Return the mask of `flatten`'s tokens, or None without a mask."""
    return None if valid is None else rearrange(valid, "b t h w -> b (t h w)")
