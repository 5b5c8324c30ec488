"""Training losses: pure tensor functions that share one signature, and the weights of cells and leads in them.

`loss(forecast, target, weights)`: forecast (b, horizon, c, h, w), or with members (b, m, horizon, c, h, w); target (b,
horizon, c, h, w), NaN where nothing was observed; weights of any shape that broadcasts to the target's. A loss is the
weighted sum of errors over the *number* of cells with a target, not over their weights: a field with heavy rain counts
for more than a dry one. Cells without a target carry no gradient; where there is none at all the loss is 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from fieldcast.pipeline.config.training import Train

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

ALPHA = 0.95  # of the almost fair CRPS: the fair one alone would let one member drift away for free
RAIN_WEIGHTS = {0.5: 1.0, 2.0: 2.0, 5.0: 5.0, 10.0: 10.0, 30.0: 30.0}  # from this rain rate on [mm/h]; below all: 1


def weighted_mean(errors: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the sum of weighted `errors` over the number of cells that have a target."""
    valid = target.isfinite()
    return torch.where(valid, weights * errors, 0.0).sum() / valid.sum().clamp(min=1)


def filled(target: Tensor) -> Tensor:
    """Return the target with 0 in its gaps: NaN would reach the gradient even of errors that do not count."""
    return torch.where(target.isfinite(), target, 0.0)


def mse(forecast: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the mean squared error."""
    return weighted_mean((forecast - filled(target)) ** 2, target, weights)


def mae(forecast: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the mean absolute error."""
    return weighted_mean((forecast - filled(target)).abs(), target, weights)


def huber(forecast: Tensor, target: Tensor, weights: Tensor, delta: float = 1.0) -> Tensor:
    """Return the Huber loss: half the squared error up to `delta`, linear beyond."""
    errors = functional.huber_loss(forecast, filled(target), reduction="none", delta=delta)
    return weighted_mean(errors, target, weights)


def balanced(forecast: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return the mean squared plus the mean absolute error; `weights` are those of `rain_weights`.

    Shi et al. (2017, arXiv:1706.03458), section 4: their B-MSE + B-MAE, which sum over the cells of a frame, divided by
    the number of cells. They measure errors in pixels, linear in dBZ; so are normalised values under the transform db.
    """
    errors = forecast - filled(target)
    return weighted_mean(errors**2 + errors.abs(), target, weights)


def spectral(forecast: Tensor, target: Tensor, weights: Tensor, weight: float = 1.0) -> Tensor:
    """Return the squared error plus `weight` times the squared mismatch of the amplitudes of all waves.

    Amplitudes are those of each field's 2-D Fourier transform, with 0 in both fields where the target has a gap. They
    do not locate a wave, so that the second term asks for detail even where its place is unknown. It is at most
    the first, by Parseval's theorem. `weights` are the same in all cells of a field.
    """
    seen = torch.where(target.isfinite(), forecast, 0.0)
    errors = (_amplitudes(seen) - _amplitudes(filled(target))) ** 2
    cells = target.isfinite().sum().clamp(min=1)
    return mse(forecast, target, weights) + weight * (weights * errors).sum() / cells


def _amplitudes(fields: Tensor) -> Tensor:
    amplitudes: Tensor = torch.fft.fft2(fields, norm="ortho").abs()
    return amplitudes


def pinball(forecast: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """Return twice the pinball loss, averaged over the levels (i - 1/2) / m: a sum for the CRPS.

    `forecast` (b, m, ...) holds quantiles in the order of their levels. Koenker and Bassett (1978):
    tau max(y - q, 0) + (1 - tau) max(q - y, 0).
    """
    m = forecast.shape[1]
    levels = (torch.arange(m, device=forecast.device, dtype=forecast.dtype) + 0.5) / m
    above = filled(target)[:, None] - forecast
    levels = levels.view(-1, *(1,) * (forecast.ndim - 2))
    return weighted_mean(2 * torch.maximum(levels * above, (levels - 1) * above).mean(dim=1), target, weights)


def almost_fair_crps(forecast: Tensor, target: Tensor, weights: Tensor, alpha: float = ALPHA) -> Tensor:
    """Return the mean almost fair CRPS of ensembles `forecast` (b, m, ...).

    Lang et al. (2024, arXiv:2412.15832): alpha times the fair CRPS plus 1 - alpha times the CRPS, so
    mean |x_j - y| - (1 - (1 - alpha) / m) / (2 m (m - 1)) sum |x_j - x_k|, the sum by ranks.
    """
    m = forecast.shape[1]
    error = (forecast - filled(target)[:, None]).abs().mean(dim=1)
    ranked = forecast.sort(dim=1).values
    half = 2 * torch.arange(m, device=forecast.device, dtype=forecast.dtype) - m + 1  # half of what pairs add up to
    pairs = torch.einsum("m,bm...->b...", half, ranked)
    return weighted_mean(error - (1 - (1 - alpha) / m) / (m * (m - 1)) * pairs, target, weights)


LOSSES: dict[str, Loss] = {
    "mse": mse,
    "mix": mse,
    "mae": mae,
    "huber": huber,
    "balanced": balanced,
    "spectral": spectral,
}
OF_MEMBERS: dict[str, Loss] = {"quantiles": pinball, "ensemble": almost_fair_crps}  # by a model's output


def choose(options: Train, output: str) -> Loss:
    """Return the loss of a model with this output, with the options that it takes."""
    if output in OF_MEMBERS:
        return OF_MEMBERS[output]
    if options.loss == "huber":
        return partial(huber, delta=options.huber_delta)
    if options.loss == "spectral":
        return partial(spectral, weight=options.spectral_weight)
    return LOSSES[options.loss]


def rain_weights(rain_rate: Tensor) -> Tensor:
    """Return the weight of each cell by its observed rain rate in mm/h: 1, 1, 2, 5, 10 or 30; 0 where it is NaN.

    Shi et al. (2017, arXiv:1706.03458), section 4.
    """
    weights = torch.where(rain_rate.isnan(), 0.0, torch.ones_like(rain_rate))
    for start, weight in RAIN_WEIGHTS.items():
        weights = torch.where(rain_rate >= start, weight, weights)
    return weights


def lead_weights(kind: str, last: float, horizon: int, device: torch.device | None = None) -> Tensor:
    """Return weights (horizon, 1, 1, 1) of the leads, `same`, or from 1 to `last` by equal steps or factors; mean 1."""
    if kind == "same" or horizon == 1:
        return torch.ones(horizon, 1, 1, 1, device=device)
    share = torch.arange(horizon, device=device, dtype=torch.float32) / (horizon - 1)
    weights = 1 + share * (last - 1) if kind == "linear" else torch.exp(share * math.log(last))
    return (weights / weights.mean())[:, None, None, None]
