"""Scores of values: errors averaged over cells, lead by lead."""

from __future__ import annotations

import numpy as np
import xarray as xr

from pipeline.schema import INIT_TIME

SUMS = ("n", "error", "absolute_error", "squared_error", "observed", "observed_squared")


def error_sums(forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray) -> dict[str, np.ndarray]:
    """Return the sums over valid cells of each frame, by the names in `SUMS`.

    All three arrays are `(frame, y, x)`, `valid` boolean, the fields in physical units; cells that are not valid may
    hold anything, NaN included. Each sum is float64 `(frame,)`; a frame without a valid cell has zeros.
    """
    kept = np.where(valid, observed, 0.0).astype(np.float64)
    error = np.where(valid, forecast, 0.0).astype(np.float64) - kept
    return {
        "n": valid.sum(axis=(1, 2), dtype=np.float64),
        "error": error.sum(axis=(1, 2)),
        "absolute_error": np.abs(error).sum(axis=(1, 2)),
        "squared_error": np.einsum("fyx,fyx->f", error, error),
        "observed": kept.sum(axis=(1, 2)),
        "observed_squared": np.einsum("fyx,fyx->f", kept, kept),
    }


def rmse(sums: xr.Dataset) -> xr.DataArray:
    """Return the root mean square error, sqrt(Σ(f − o)² / n), in the field's units; 0 is perfect.

    Squared errors are pooled over all valid cells of all init times before the root, so a frame counts by its number
    of valid cells. NaN where no cell is valid. Wilks (2019), Statistical Methods in the Atmospheric Sciences, eq. 9.36.
    """
    return _mean(sums, "squared_error") ** 0.5


def mae(sums: xr.Dataset) -> xr.DataArray:
    """Return the mean absolute error, Σ|f − o| / n, in the field's units; 0 is perfect.

    Pooled over all valid cells of all init times; NaN where no cell is valid. Wilks (2019), eq. 9.34.
    """
    return _mean(sums, "absolute_error")


def mean_error(sums: xr.Dataset) -> xr.DataArray:
    """Return the mean error, Σ(f − o) / n, in the field's units; positive means forecasts too high.

    Pooled over all valid cells of all init times; NaN where no cell is valid. Wilks (2019), eq. 9.37.
    """
    return _mean(sums, "error")


def mse_frame(sums: xr.Dataset) -> xr.DataArray:
    """Return the video field's MSE: Σ(f − o)² over a frame's pixels, then the mean over frames, in units squared.

    It grows with the number of pixels, unlike `rmse`² (which divides by it). Frames without a valid cell are left
    out; in a frame with missing cells the sum runs over the valid ones. NaN where no frame has a valid cell.
    Srivastava et al. (2015), arXiv:1502.04681, and the Moving MNIST benchmark since.
    """
    frames = (sums["n"] > 0).sum(INIT_TIME)
    return sums["squared_error"].sum(INIT_TIME) / frames.where(frames > 0)


def mse_skill(mse: np.ndarray, reference_mse: np.ndarray) -> np.ndarray:
    """Return the skill score 1 − MSE / MSE of the reference: 1 is perfect, 0 no better, negative worse.

    Both arrays have one shape and the same units. NaN where the reference's error is 0 or NaN. Murphy (1988),
    Mon. Wea. Rev. 116, eq. 4.
    """
    reference = np.where(reference_mse > 0, reference_mse, np.nan)
    return np.asarray(1.0 - mse / reference)


def _mean(sums: xr.Dataset, name: str) -> xr.DataArray:
    n = sums["n"].sum(INIT_TIME)
    return sums[name].sum(INIT_TIME) / n.where(n > 0)
