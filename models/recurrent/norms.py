"""Normalisation of gates before their activation."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

GROUP = 32  # channels normalised together, at least


class CellNorm(nn.LayerNorm):
    """Layer norm over the channels of each cell by itself: the grid's other cells, and its size, do not matter."""

    def forward(self, maps: Float[Tensor, "b d h w"]) -> Float[Tensor, "b d h w"]:
        """Return maps of mean 0 and variance 1 over the channels, then scaled and shifted."""
        return rearrange(super().forward(rearrange(maps, "b d h w -> b h w d")), "b h w d -> b d h w")


def make_norm(kind: str, channels: int) -> nn.GroupNorm | CellNorm | None:
    """Return A norm of maps by its name: `group` (groups of channels over the grid), `layer` or `none`."""
    if kind == "group":
        return nn.GroupNorm(groups_of(channels), channels)
    return CellNorm(channels) if kind == "layer" else None


def groups_of(channels: int) -> int:
    """Return the largest number of equal groups with at least 32 channels each, else 1."""
    most = max(channels // GROUP, 1)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)
