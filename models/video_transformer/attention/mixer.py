"""The one interface of every attention pattern: a grid of space-time tokens in, the same grid mixed out."""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Bool, Float
from torch import Tensor

Grid = Float[Tensor, "b t h w d"]
Valid = Bool[Tensor, "b t h w"]  # False: nothing may attend to this token


class Mixer(Protocol):
    """An attention pattern: an `nn.Module` that is built from (dim, heads, and options of its own)."""

    def __call__(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Every token's mix of those that the pattern lets it see; tokens that are not `valid` are seen by none."""

    def macs(self, t: int, h: int, w: int) -> int:
        """Multiply-adds of one sample: exactly half of what torch's FLOP counter counts in the plain form."""

    def held(self, t: int, h: int, w: int) -> int:
        """Values that one sample's attention holds for the backward pass beyond those of projected tokens.

        0 for fused attention; heads * n * m for weights that are written out.
        """
