"""Training losses over valid cells: pure tensor functions that share one signature."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

ALPHA = 0.95  # of the almost fair CRPS: the fair one alone would let one member drift away for free


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


def pinball(forecast: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Return twice the pinball loss, averaged over the levels (i - 1/2) / m, over valid cells: a sum for the CRPS.

    `forecast` (b, m, ...) holds quantiles in the order of their levels, `target` and `valid` (b, ...). Koenker and
    Bassett (1978): tau max(y - q, 0) + (1 - tau) max(q - y, 0).
    """
    m = forecast.shape[1]
    levels = (torch.arange(m, device=forecast.device, dtype=forecast.dtype) + 0.5) / m
    above = torch.where(valid, target, 0.0)[:, None] - forecast
    levels = levels.view(-1, *(1,) * (forecast.ndim - 2))
    return masked_mean(2 * torch.maximum(levels * above, (levels - 1) * above).mean(dim=1), valid)


def almost_fair_crps(forecast: Tensor, target: Tensor, valid: Tensor, alpha: float = ALPHA) -> Tensor:
    """Return the mean almost fair CRPS of ensembles `forecast` (b, m, ...) over valid cells of `target` (b, ...).

    Lang et al. (2024, arXiv:2412.15832): alpha times the fair CRPS plus 1 - alpha times the CRPS, so
    mean |x_j - y| - (1 - (1 - alpha) / m) / (2 m (m - 1)) sum |x_j - x_k|, the sum by ranks.
    """
    m = forecast.shape[1]
    error = (forecast - torch.where(valid, target, 0.0)[:, None]).abs().mean(dim=1)
    ranked = forecast.sort(dim=1).values
    weights = 2 * torch.arange(m, device=forecast.device, dtype=forecast.dtype) - m + 1  # half of what pairs add up to
    pairs = torch.einsum("m,bm...->b...", weights, ranked)
    return masked_mean(error - (1 - (1 - alpha) / m) / (m * (m - 1)) * pairs, valid)


LOSSES: dict[str, Loss] = {"mse": mse, "mae": mae, "huber": huber}
OF_MEMBERS: dict[str, Loss] = {"quantiles": pinball, "ensemble": almost_fair_crps}  # by a model's output
