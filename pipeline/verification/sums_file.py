"""Sums of one model as a file: NetCDF-4 with a SHA-256 of its own."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.atomic import replacing
from fieldcast.pipeline.datasets.finite import require_finite
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, TIME_UNITS, check_scores
from fieldcast.pipeline.verification.aggregation import fields_of, of_field

FIELD_ORDER = "field_order"  # attribute of a file whose fields are not in the order of their names


def write_sums(sums: xr.Dataset, path: Path) -> None:
    """Write `sums` as NetCDF-4 with its SHA-256, whole or not at all, with the same bytes for the same sums.

    Raise `InputError` for a sum that is no finite number.
    """
    for name, array in sums.data_vars.items():
        fix = "look for outliers in observations and forecasts (data/prepared/quality.json)"
        require_finite(path, str(name), array.values, fix, [str(dim) for dim in array.dims])
    encoding: dict[str, dict[str, object]] = {str(name): {"_FillValue": None} for name in sums.variables}
    encoding[INIT_TIME] |= {"units": TIME_UNITS, "dtype": "int64"}
    stored, fields = sums.copy(), fields_of(sums)
    if fields != sorted(fields):
        stored.attrs[FIELD_ORDER] = fields
    for name in stored.variables:
        stored[name].encoding = {}
    seconds = (sums[LEAD_TIME] / np.timedelta64(1, "s")).astype(np.int64)
    stored[LEAD_TIME] = (LEAD_TIME, seconds.values, {"units": "seconds"})
    content = bytes(stored.to_netcdf(None, engine="h5netcdf", encoding=encoding))
    with replacing(path) as partial:
        partial.write_bytes(manifest.with_tail(content))


def read_sums(path: Path) -> xr.Dataset:
    """Return the sums that `write_sums` wrote to `path`, in memory; raise `DamagedError` where a byte has changed."""
    content = io.BytesIO(manifest.without_tail(path))
    with xr.open_dataset(content, engine="h5netcdf", decode_timedelta=True) as stored:
        sums = stored.load()
    order = sums.attrs.pop(FIELD_ORDER, ())
    names = [name for field in order for name in of_field(sums, field).data_vars]
    return check_scores(sums[names] if names else sums)
