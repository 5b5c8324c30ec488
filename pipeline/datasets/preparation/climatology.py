"""Climatology of the training period: mean fields by UTC hour of day, or one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from fieldcast.pipeline.config import Prepare
from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.frames import time_blocks
from fieldcast.pipeline.datasets.schema import FRAME_PRESENT, TIME, X, Y

HOURS = 24
CLIMATOLOGY = "climatology.nc"


def fit_climatology(training: xr.Dataset, names: list[str], options: Prepare) -> xr.Dataset:
    """Return mean fields `(hour, y, x)` float32 of the training frames, in physical units; NaN where none is valid.

    24 of them by UTC hour of day where `is_by_hour`, else one.
    """
    hours = np.asarray(training[TIME].dt.hour)
    by_hour = is_by_hour(training, options)
    groups = HOURS if by_hour else 1
    fields = {}
    for name in names:
        sums = np.zeros((groups, *training[name].shape[1:]))
        counts = np.zeros(sums.shape, dtype=np.int64)
        for index in time_blocks(training[name]):
            block = training[name][index].values
            for hour in np.unique(hours[index]) if by_hour else [0]:
                chosen = block[hours[index] == hour] if by_hour else block
                valid = np.isfinite(chosen)
                sums[hour] += np.sum(chosen, axis=0, dtype=np.float64, where=valid)
                counts[hour] += valid.sum(axis=0)
        mean = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
        fields[name] = (("hour", Y, X), mean.astype(np.float32), training[name].attrs)
    return xr.Dataset(fields, coords={"hour": np.arange(groups), Y: training[Y], X: training[X]})


def read_climatology(folder: Path) -> xr.Dataset:
    """Return `climatology.nc` in `folder`, in memory; raise `DamagedError` where its bytes have changed."""
    content = io.BytesIO(manifest.read_file(folder / CLIMATOLOGY))
    with xr.open_dataset(content, engine="h5netcdf") as stored:
        return stored.load()


def complete(climatology: np.ndarray) -> np.ndarray:
    """Return the climatology (hours, c, y, x) without gaps: cells never seen in training have the mean of the field.

    At an hour that was never seen each cell has its mean over the others.
    """
    filled = climatology
    for axes in ((2, 3), (0,), (0, 2, 3)):
        filled = np.where(np.isnan(filled), _mean(climatology, axes), filled)
    return filled.astype(np.float32)


def _mean(fields: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Return the mean over `axes`, which stay, of what is there; NaN where nothing is."""
    count = np.isfinite(fields).sum(axis=axes, keepdims=True)
    total = np.nansum(fields, axis=axes, keepdims=True, dtype=np.float64)
    return np.asarray(np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0))


def is_by_hour(training: xr.Dataset, options: Prepare) -> bool:
    """Return whether there is a mean a UTC hour of day: as asked for, or where the period is long enough for it."""
    if options.climatology != "auto":
        return options.climatology == "hour_of_day"
    present = training[TIME].values[training[FRAME_PRESENT].values]
    days = pd.DatetimeIndex(present).floor("D")
    hours = pd.DatetimeIndex(present).hour
    return days.nunique() >= options.climatology_min_days and hours.nunique() == HOURS
