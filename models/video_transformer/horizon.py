"""Weights of a trained video transformer for a longer horizon than it was trained for."""

import torch
from torch import Tensor

BY_LEAD = {  # weights that have a place for each lead, the last ones of a dimension
    "base.change": 0,
    "positions.times": 0,
    "positions.linear.weight": 1,
}


def for_horizon(state: dict[str, Tensor], horizon: int) -> dict[str, Tensor]:
    """Return the weights with those of the last lead repeated for all leads after it.

    Raises ValueError for a horizon that is shorter than the trained one.
    """
    more = horizon - len(state["base.change"])
    if more < 0:
        raise ValueError(f"horizon must be at least the trained one ({len(state['base.change'])}), got {horizon}")
    return {name: repeated(value, BY_LEAD[name], more) if name in BY_LEAD else value for name, value in state.items()}


def repeated(weights: Tensor, dim: int, times: int) -> Tensor:
    """Return the weights with the last one along a dimension repeated `times` more."""
    last = weights.narrow(dim, weights.shape[dim] - 1, 1)
    return torch.cat([weights, *[last] * times], dim=dim)
