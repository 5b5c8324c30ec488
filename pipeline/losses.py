"""Training losses over valid cells: pure tensor functions that share one signature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def masked_mean(errors: Tensor, valid: Tensor) -> Tensor:
    """Return the mean of `errors` where `valid` is true; 0, with zero gradient, where nothing is."""
    return torch.where(valid, errors, 0.0).sum() / valid.sum().clamp(min=1)


def mse(forecast: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean squared error over valid cells; values elsewhere, NaN included, carry no gradient."""
    return masked_mean((forecast - torch.where(valid, target, 0.0)) ** 2, valid)


def mae(forecast: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the mean absolute error over valid cells."""
    return masked_mean((forecast - torch.where(valid, target, 0.0)).abs(), valid)


def huber(forecast: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return the Huber loss, squared up to one normalised unit and linear beyond, over valid cells."""
    errors = torch.nn.functional.huber_loss(forecast, torch.where(valid, target, 0.0), reduction="none")
    return masked_mean(errors, valid)


LOSSES: dict[str, Loss] = {"mse": mse, "mae": mae, "huber": huber}
