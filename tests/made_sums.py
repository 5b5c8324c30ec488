"""Sums of models whose errors are given: what is observed is 0, so that a forecast is its own error."""

import numpy as np
import xarray as xr

from fieldcast.pipeline.verification.aggregation import frame_sums, label_sums

STEP = np.timedelta64(5, "m")


def made_sums(errors, observed=None, *, thresholds=(), every=STEP, field="rain", units="mm h-1"):
    """Return the sums of forecasts with `errors` `(init, lead, cell)`, init times `every` apart, leads of 5 minutes."""
    errors = np.asarray(errors, np.float64)[:, :, None]
    observed = np.zeros(errors.shape) if observed is None else np.asarray(observed, np.float64)[:, :, None]
    inits = np.datetime64("2024-06-01T00:00", "ns") + np.arange(len(errors)) * every
    leads = (np.arange(1, errors.shape[1] + 1) * STEP).astype("timedelta64[ns]")
    coords = {"init_time": xr.DataArray(inits, dims="init_time"), "lead_time": xr.DataArray(leads, dims="lead_time")}
    sums = frame_sums(observed + errors, observed, np.ones(errors.shape, bool), thresholds, [])
    return label_sums(sums, field, units, coords, thresholds, [])


def autoregressive(rng, n, rho, k=1):
    """Return `k` columns of a first-order autoregressive process with variance 1, `(n, k)`."""
    noise = rng.standard_normal((n, k))
    out = np.empty((n, k))
    out[0] = noise[0]
    for i in range(1, n):
        out[i] = rho * out[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return out
