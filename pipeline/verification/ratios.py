"""Ratios of sums, which are NaN where nothing was counted."""

import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME


def ratio(part: xr.DataArray, whole: xr.DataArray) -> xr.DataArray:
    """Return part / whole, NaN where `whole` is 0."""
    return part / whole.where(whole > 0)


def weighted_mean(sums: xr.Dataset, name: str) -> xr.DataArray:
    """Return the sum of that name over the weights of all valid cells, pooled over the init times."""
    return ratio(sums[name].sum(INIT_TIME), sums["weight"].sum(INIT_TIME))
