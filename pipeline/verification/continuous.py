"""Scores of values: errors averaged over cells, lead by lead, and what varies together.

Cells are weighted by their area: `rows` holds the weight of each row of the grid, mean 1; without it
every cell weighs 1. A mean is a weighted sum divided by the sum of weights.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.verification.ratios import ratio, weighted_mean

SUMS = ("n", "error", "absolute_error", "squared_error", "observed", "observed_squared")
MOMENTS = ("forecast", "forecast_squared", "product")
ANOMALIES = ("anomaly_product", "anomaly_forecast_squared", "anomaly_observed_squared")


def error_sums(
    forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray, rows: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the sums over valid cells of each frame, by the names in `SUMS`.

    All three arrays are `(frame, y, x)`, `valid` boolean, the fields in physical units; cells that are not valid may
    hold anything, NaN included. Each sum is float64 `(frame,)`; a frame without a valid cell has zeros. All are
    weighted by `rows` but `n`, which is the plain number of valid cells.
    """
    kept = _kept(observed, valid)
    error = _kept(forecast, valid) - kept
    return {
        "n": np.count_nonzero(valid, axis=(1, 2)).astype(np.float64),
        "error": _total(error, rows),
        "squared_error": _product(error, error, rows),
        "absolute_error": _total(np.abs(error, out=error), rows),
        "observed": _total(kept, rows),
        "observed_squared": _product(kept, kept, rows),
    }


def weight_sums(valid: np.ndarray, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Return `weight`, the sum of weights of each frame's valid cells, and `frames`, 1 where it has any, else 0."""
    count = np.count_nonzero(valid, axis=2)
    weight = count.sum(axis=1).astype(np.float64) if rows is None else count @ rows
    return {"weight": weight, "frames": count.any(axis=1).astype(np.float64)}


def moment_sums(
    forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray, rows: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return Σf, Σf² and Σfo over the valid cells of each frame, by the names in `MOMENTS`; arguments as above."""
    f, o = _kept(forecast, valid), _kept(observed, valid)
    return dict(zip(MOMENTS, (_total(f, rows), _product(f, f, rows), _product(f, o, rows)), strict=True))


def anomaly_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    climatology: np.ndarray,
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return Σf'o', Σf'² and Σo'² of the departures f' = f − c and o' = o − c, by the names in `ANOMALIES`.

    `climatology` c is `(frame, y, x)`; cells where it is NaN are left out, beside those that are not valid.
    """
    known = valid & np.isfinite(climatology)
    normal = _kept(climatology, known)
    f, o = _kept(forecast, known) - normal, _kept(observed, known) - normal
    pairs = ((f, o), (f, f), (o, o))
    return {name: _product(*pair, rows) for name, pair in zip(ANOMALIES, pairs, strict=True)}


def rmse(sums: xr.Dataset) -> xr.DataArray:
    """Return the root mean square error, sqrt(Σ(f − o)² / n), in the field's units; 0 is perfect.

    Squared errors are pooled over all valid cells of all init times before the root, so a frame counts by its number
    of valid cells. NaN where no cell is valid. Wilks (2019), Statistical Methods in the Atmospheric Sciences, eq. 9.36.
    """
    return weighted_mean(sums, "squared_error") ** 0.5


def mae(sums: xr.Dataset) -> xr.DataArray:
    """Return the mean absolute error, Σ|f − o| / n, in the field's units; 0 is perfect.

    Pooled over all valid cells of all init times; NaN where no cell is valid. Wilks (2019), eq. 9.34.
    """
    return weighted_mean(sums, "absolute_error")


def mean_error(sums: xr.Dataset) -> xr.DataArray:
    """Return the mean error, Σ(f − o) / n, in the field's units; positive means forecasts too high.

    Pooled over all valid cells of all init times; NaN where no cell is valid. Wilks (2019), eq. 9.37.
    """
    return weighted_mean(sums, "error")


def mse_frame(sums: xr.Dataset) -> xr.DataArray:
    """Return the video field's MSE: Σ(f − o)² over a frame's pixels, then the mean over frames, in units squared.

    It grows with the number of pixels, unlike `rmse`² (which divides by it). Frames without a valid cell are left
    out; in a frame with missing cells the sum runs over the valid ones. NaN where no frame has a valid cell.
    Srivastava et al. (2015), arXiv:1502.04681, and the Moving MNIST benchmark since.
    """
    return ratio(sums["squared_error"].sum(INIT_TIME), sums["frames"].sum(INIT_TIME))


def correlation(sums: xr.Dataset) -> xr.DataArray:
    """Return Pearson's correlation of forecast and observed values, −1 to 1; 1 is perfect up to scale and bias.

    All valid cells of all init times are one sample, so differences between init times count as skill. NaN where either
    side does not vary. Wilks (2019), ch. 3.
    """
    covariance, forecast, observed = _central(sums)
    return ratio(covariance, (forecast * observed) ** 0.5)


def variance_ratio(sums: xr.Dataset) -> xr.DataArray:
    """Return the variance of the forecast over that of the observed values: 1 is perfect, below 1 too smooth.

    Both are pooled over all valid cells of all init times; NaN where the observed values do not vary.
    """
    _, forecast, observed = _central(sums)
    return ratio(forecast, observed)


def anomaly_correlation(sums: xr.Dataset) -> xr.DataArray:
    """Return the uncentred anomaly correlation, Σf'o' / sqrt(Σf'² Σo'²): −1 to 1, 1 is perfect.

    f' and o' are departures from the climatology of the training period at the valid time's UTC hour, or from one mean
    where the data are too short for 24; sums are pooled over init times. NaN where either side has no departure, for
    instance for the climatology itself. Wilks (2019), ch. 9, after Miyakoda et al. (1972).
    """
    product, forecast, observed = (sums[name].sum(INIT_TIME) for name in ANOMALIES)
    return ratio(product, (forecast * observed) ** 0.5)


def mse_skill(mse: np.ndarray, reference_mse: np.ndarray) -> np.ndarray:
    """Return the skill score 1 − MSE / MSE of the reference: 1 is perfect, 0 no better, negative worse.

    Both arrays have one shape and the same units. NaN where the reference's error is 0 or NaN. Murphy (1988),
    Mon. Wea. Rev. 116, eq. 4.
    """
    reference = np.where(reference_mse > 0, reference_mse, np.nan)
    return np.asarray(1.0 - mse / reference)


def _kept(field: np.ndarray, valid: np.ndarray) -> np.ndarray:
    return np.where(valid, field, field.dtype.type(0)).astype(np.float64)


def _total(cells: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    if rows is None:
        return np.asarray(cells.reshape(len(cells), -1).sum(axis=1))
    return np.asarray(cells.sum(axis=2) @ rows)


def _product(a: np.ndarray, b: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    if rows is None:
        return np.asarray(np.vecdot(a.reshape(len(a), -1), b.reshape(len(b), -1)))
    return np.asarray(np.vecdot(a, b) @ rows)


def _central(sums: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """Return the pooled covariance and the variances of forecast and observed, in sums of weights."""
    weight = sums["weight"].sum(INIT_TIME)
    f, o = (ratio(sums[name].sum(INIT_TIME), weight) for name in ("forecast", "observed"))
    covariance = ratio(sums["product"].sum(INIT_TIME), weight) - f * o
    forecast = ratio(sums["forecast_squared"].sum(INIT_TIME), weight) - f**2
    observed = ratio(sums["observed_squared"].sum(INIT_TIME), weight) - o**2
    return covariance, _beyond_rounding(forecast, f), _beyond_rounding(observed, o)


def _beyond_rounding(variance: xr.DataArray, mean: xr.DataArray) -> xr.DataArray:
    """Return a variance, 0 where it is no more than the rounding of the squares that it is a difference of."""
    return variance.where(~(variance <= 1e-12 * mean**2), 0.0)
