"""Regression in the moving frame: for each lead a weighted sum of smoothed copies of the latest field, moved along.

The longer the lead, the less of a field's fine detail can be forecast (Seed 2003). Here least squares say how much, in
physical units: lead f of channel c is a constant plus the latest field, blurred over each of `scales` and moved along
its flow, times weights fitted on the training period. With all weight on the field itself it is advection.

Rain and other amounts (`transform: db`) have no constant: where nothing arrives, none is forecast. With one, the least
squares of a wet training period let it drizzle everywhere, for a gain in squared error that hardly shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fieldcast.models.lagrangian_regression.options import LagrangianRegressionOptions
from fieldcast.models.layers.latest import latest_valid
from fieldcast.models.layers.motion import Array32, averaged, carried_on, departures, motion, moved
from fieldcast.models.layers.reference import Case, Training

BYTES = 2**27  # of predictors held at once in a fit
RIDGE = 1e-6  # of the mean square of the predictors: blurs of a field are alike


def predictors(latest: Array32, recent: Array32, horizon: int, options: LagrangianRegressionOptions) -> Tensor:
    """Return (b, horizon, k + 1, h, w): the latest field (b, h, w) at k scales, moved along, and 1.

    `recent` (b, t, h, w) gives the flow.
    """
    field = carried_on(torch.from_numpy(latest)[:, None])
    scales = torch.cat([averaged(field, sigma) for sigma in options.scales], dim=1)
    fields = moved(scales, departures(motion(recent, options), horizon))
    return torch.cat([fields, torch.ones_like(fields[:, :, :1])], dim=2)


def members(history: Array32, case: Case) -> Array32:
    """Return the regression as one member, or as all of them alike where quantiles are asked for.

    `pipeline.forecasting.calibration` then moves each to its quantile of the residuals.
    """
    options = case.options
    assert isinstance(options, LagrangianRegressionOptions)
    weights = torch.from_numpy(case.arrays["weights"])
    latest = latest_valid(history)
    with torch.inference_mode():
        forecasts = [
            torch.einsum("bfkhw,fk->bfhw", predictors(latest[:, c], history[:, :, c], case.horizon, options), of_c)
            for c, of_c in enumerate(weights.unbind(1))
        ]
    fields = torch.stack(forecasts, dim=2).numpy()
    fields = np.where(np.isnan(latest)[:, None], np.float32(np.nan), fields)
    return np.repeat(fields[:, None], options.members or 1, axis=1)


def fit(training: Training) -> tuple[dict[str, Array32], dict[str, Any]]:
    """Return the weights (horizon, c, k + 1) over the init times of the training period."""
    options = training.options
    assert isinstance(options, LagrangianRegressionOptions)
    leads, channels, size = training.horizon, training.climatology.shape[1], len(options.scales) + 1
    squares = torch.zeros(leads, channels, size, size, dtype=torch.float64)
    products = torch.zeros(leads, channels, size, dtype=torch.float64)
    with torch.inference_mode():
        for history, target in _pieces(training, size):
            for c in range(channels):
                square, product = _sums(history[:, :, c], target[:, :, c], options)
                squares[:, c] += square
                products[:, c] += product
    weights = solved(squares, products, constant=options.transform == "identity")
    shown = [f"lead {lead + 1}: " + " ".join(f"{w:.3f}" for w in weights[lead, 0]) for lead in (0, len(weights) - 1)]
    facts = {"weights of scales " + ", ".join(f"{s:g}" for s in options.scales) + " and 1": "; ".join(shown)}
    return {"weights": weights.numpy()}, facts


def solved(
    squares: Float[Tensor, "f c k k"], products: Float[Tensor, "f c k"], *, constant: bool
) -> Float[Tensor, "f c k"]:
    """Return the weights of the least squares, float32; 0 where there is nothing to fit.

    The last predictor is 1; without a `constant` its weight is 0.
    """
    if not constant:
        alone = solved(squares[..., :-1, :-1], products[..., :-1], constant=True)
        return functional.pad(alone, (0, 1))
    size = squares.shape[-1]
    ridge = RIDGE * squares.diagonal(dim1=-2, dim2=-1).mean(dim=-1).clamp(min=1e-12)
    regular = squares + ridge[..., None, None] * torch.eye(size, dtype=squares.dtype)
    weights: Tensor = torch.linalg.solve(regular, products[..., None])[..., 0].float()
    return weights


def _sums(history: Array32, target: Array32, options: LagrangianRegressionOptions) -> tuple[Tensor, Tensor]:
    """Return sums over cases and cells of products of predictors (f, k, k), and with the target (f, k)."""
    latest = latest_valid(history)
    x = predictors(latest, history, target.shape[1], options).double()
    y = torch.from_numpy(target)
    known = repeat(torch.from_numpy(~np.isnan(latest)), "b h w -> b f h w", f=target.shape[1]) & y.isfinite()
    y = torch.where(known, y, 0.0).double()
    flat = rearrange(torch.where(known[:, :, None], x, 0.0), "b f k h w -> f (b h w) k")
    return flat.mT @ flat, torch.einsum("fnk,fn->fk", flat, rearrange(y, "b f h w -> f (b h w)"))


def _pieces(training: Training, predictors_per_cell: int) -> Iterator[tuple[Array32, Array32]]:
    """Yield histories and targets, as many at once as `BYTES` of predictors allow."""
    for history, target, _ in training.blocks:
        cells = 8 * predictors_per_cell * target.shape[1] * target.shape[-2] * target.shape[-1]
        count = max(1, BYTES // cells)
        for start in range(0, len(history), count):
            yield history[start : start + count], target[start : start + count]
