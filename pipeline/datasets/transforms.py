"""Transforms of a variable for a network: logarithm, decibels, identity, and their inverse."""

from __future__ import annotations

import math

import torch
from torch import Tensor

HIGHEST = 6.0  # of a natural logarithm: 400 times the floor


def transform(values: Tensor, kind: str, floor: float) -> Tensor:
    """Return transformed `values` (any shape, physical units; NaN stays NaN).

    `identity`: x; `log`: log(1 + x / floor); `db`: 10 log10(max(x, floor) / floor), so that all below `floor` is 0.
    """
    if kind == "log":
        return torch.log1p(values / floor)
    if kind == "db":
        return 10 * torch.log10(values.clamp(min=floor) / floor)
    return values


def inverse_transform(values: Tensor, kind: str, floor: float) -> Tensor:
    """Return `values` back in physical units; all at or below the lower end of `log` and `db` is 0."""
    if kind == "log":
        return torch.expm1(values.clamp(min=0)) * floor
    if kind == "db":
        return torch.where(values <= 0, 0.0, floor * torch.exp(values * (math.log(10) / 10)))
    return values


def smooth_inverse(values: Tensor, kind: str, floor: float) -> Tensor:
    """Return `values` back in physical units, going on below the lower end of `log` and `db` with its own slope.

    A value so high that it can only be an untrained network's grows no further, or one such cell would be all of a
    loss.
    """
    if kind == "log":
        return floor * torch.where(values > 0, torch.expm1(values.clamp(max=HIGHEST)), values)
    if kind == "db":
        return floor * torch.exp((values * (math.log(10) / 10)).clamp(max=HIGHEST))
    return values
