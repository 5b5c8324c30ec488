import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.verification import spectral
from fieldcast.pipeline.verification.aggregation import field_sums, frame_sums, label_sums

INITS, LEADS, NY, NX = 5, 3, 23, 19
THRESHOLDS, SCALES_KM, WINDOWS = (0.5, 2.0), (1.0, 5.0), [(1, 1), (5, 5)]


@pytest.fixture
def fields():
    """Return a forecast, an observation and a mask with holes, each (init, lead, y, x)."""
    rng = np.random.default_rng(3)
    shape = (INITS, LEADS, NY, NX)
    forecast, observed = (rng.gamma(0.7, 2, shape).astype(np.float32) for _ in range(2))
    return forecast, observed, rng.random(shape) > 0.2


@pytest.fixture
def labelled():
    """Return a function that makes the plain-named sums of one field out of arrays."""

    def make(forecast, observed, valid=None, thresholds=THRESHOLDS, windows=WINDOWS, scales_km=SCALES_KM, extras=None):
        valid = np.ones(forecast.shape, bool) if valid is None else valid
        inits = np.datetime64("2020-01-01", "ns") + np.arange(len(valid)) * np.timedelta64(1, "h")
        leads = np.arange(1, valid.shape[1] + 1) * np.timedelta64(5, "m").astype("timedelta64[ns]")
        coords = {
            "init_time": xr.DataArray(inits, dims="init_time"),
            "lead_time": xr.DataArray(leads, dims="lead_time"),
        }
        hours = np.zeros(valid.shape[:2], int)
        sums = frame_sums(forecast, observed, valid, thresholds, windows, extras, hours)
        labels = {}
        if extras and extras.spacing:
            labels["wavelength"] = spectral.wavelengths_km(valid.shape[2:], extras.spacing)
        if extras and extras.storms:
            labels["storm_threshold"] = np.array([extras.storms.at_least])
        if extras:
            labels["region"] = np.array([f"r{i}" for i in range(len(extras.regions))])
        return field_sums(label_sums(sums, "rain", "mm h-1", coords, thresholds, scales_km, labels), "rain")

    return make
