"""Normalisation of gates before their activation."""

from torch import nn

from fieldcast.models.layers.norms import ChannelNorm

GROUP = 32  # channels normalised together, at least


def make_norm(kind: str, channels: int) -> nn.GroupNorm | ChannelNorm | None:
    """Return a norm of maps by its name: `group` (groups of channels over the grid), `layer` or `none`."""
    if kind == "group":
        return nn.GroupNorm(groups_of(channels), channels)
    return ChannelNorm(channels) if kind == "layer" else None


def groups_of(channels: int) -> int:
    """Return the largest number of equal groups with at least 32 channels each, else 1."""
    most = max(channels // GROUP, 1)
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)
