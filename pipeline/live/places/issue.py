"""Forecasts for places as they are published: a CF time series for each place in one NetCDF file, and a table.

`places.nc` lies inside the published forecast, under its manifest, and never changes; the copies for readers are that
file and the same numbers as CSV. `<variable> (place, time)` is the mean over the place of the published field,
`<variable>_quantile (quantile, place, time)` the range; `<variable>_amount` is rain since the init time, of an area
also as `<variable>_volume`. `<variable>_observed (place, observed_time)` is the history that the forecast began from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.atomic import make_folder, replace_durable, write_durable
from fieldcast.pipeline.datasets.schema import CONVENTIONS, INIT_TIME, LEAD_TIME, TIME, TIME_UNITS
from fieldcast.pipeline.datasets.signature import DataSignature
from fieldcast.pipeline.datasets.times import from_minutes, to_numpy
from fieldcast.pipeline.live.places.areas import is_on_earth
from fieldcast.pipeline.live.places.forecaster import PlaceForecast
from fieldcast.pipeline.live.places.ranges import LEVELS, Quantity

PLACES = "places.nc"  # file inside the store of a published forecast
NETCDF, TABLE = ".places.nc", ".places.csv"  # of the copies, behind the stamp
PLACE, QUANTILE, OBSERVED_TIME = "place", "quantile", "observed_time"
PLACE_NAME, CELLS, AREA, CALIBRATED = "place_name", "cells", "area", "calibrated"
VOLUME = "_volume"  # ends the name of rain on an area
CUBIC_METRES = 1000.0  # of 1 mm on 1 km2
SHOWN = {1: "p10", 4: "p30", 7: "p50", 10: "p70", 13: "p90"}  # of the levels, by position
ISO = "%Y-%m-%dT%H:%M:%SZ"


def dataset_of(
    forecasts: Sequence[PlaceForecast],
    quantities: Sequence[Quantity],
    signature: DataSignature,
    init_time: datetime,
    facts: Mapping[str, Any],
) -> xr.Dataset:
    """Return the forecasts of all places as a dataset of CF's feature type timeSeries; `facts` are attributes too."""
    dataset = _template(forecasts, signature, init_time).assign_attrs({**dict(facts), "featureType": "timeSeries"})
    for k, quantity in enumerate(quantities):
        long_name = "rain since the init time" if quantity.is_amount else quantity.variable.replace("_", " ")
        attributes = {"units": quantity.units, "long_name": f"{long_name}, mean over the place"}
        mean = np.stack([each.mean[:, k] for each in forecasts])
        ranges = np.stack([each.range[:, :, k] for each in forecasts], axis=1)
        _add(dataset, quantity.name, mean, ranges, attributes)
        if quantity.is_amount:
            factor = CUBIC_METRES * dataset[AREA].values[:, None]
            volume = {"units": "m3", "long_name": "rain on the area since the init time"}
            _add(dataset, f"{quantity.variable}{VOLUME}", factor * mean, factor * ranges, volume)
        else:
            history = np.stack([each.history[:, k] for each in forecasts]).astype(np.float32)
            dataset[f"{quantity.name}_observed"] = ((PLACE, OBSERVED_TIME), history, attributes)
    return dataset


def _add(dataset: xr.Dataset, name: str, mean: np.ndarray, ranges: np.ndarray, attributes: dict[str, str]) -> None:
    dataset[name] = ((PLACE, TIME), mean.astype(np.float32), attributes)
    dataset[f"{name}_{QUANTILE}"] = ((QUANTILE, PLACE, TIME), ranges.astype(np.float32), attributes)


def _template(forecasts: Sequence[PlaceForecast], signature: DataSignature, init_time: datetime) -> xr.Dataset:
    """Return the coordinates of the forecasts, and what is known of the places."""
    step, start = from_minutes(signature.step_minutes), to_numpy(init_time)
    leads, frames = len(forecasts[0].mean), len(forecasts[0].history)
    places = [each.place for each in forecasts]
    if is_on_earth(signature):
        x, y = ("longitude", "degrees_east"), ("latitude", "degrees_north")
    else:
        x, y = (("projection_x_coordinate", signature.x.units), ("projection_y_coordinate", signature.y.units))
    calibrated = np.array([each.is_calibrated for each in forecasts], np.int8)
    meanings = {"flag_values": np.array([0, 1], np.int8), "flag_meanings": "not_calibrated calibrated"}
    areas = [np.nan if place.area_km2 is None else place.area_km2 for place in places]
    return xr.Dataset(
        {
            CELLS: (PLACE, [place.key for place in places], {"long_name": "digest of the cells of a place"}),
            CALIBRATED: (PLACE, calibrated, {"long_name": "whether ranges are calibrated", **meanings}),
        },
        {
            PLACE_NAME: (PLACE, [place.name for place in places], {"cf_role": "timeseries_id"}),
            x[0]: (PLACE, [place.x for place in places], {"standard_name": x[0], "units": x[1]}),
            y[0]: (PLACE, [place.y for place in places], {"standard_name": y[0], "units": y[1]}),
            AREA: (PLACE, areas, {"standard_name": "cell_area", "units": "km2"}),
            QUANTILE: (QUANTILE, LEVELS, {"standard_name": "quantile", "units": "1"}),
            TIME: (TIME, start + step * np.arange(1, leads + 1), {"standard_name": "time"}),
            LEAD_TIME: (
                TIME,
                signature.step_minutes * np.arange(1, leads + 1),
                {"standard_name": "forecast_period", "units": "minutes"},
            ),
            OBSERVED_TIME: (OBSERVED_TIME, start + step * np.arange(1 - frames, 1), {"standard_name": "time"}),
            INIT_TIME: ((), start, {"standard_name": "forecast_reference_time"}),
        },
        {"Conventions": CONVENTIONS},
    )


def packed(dataset: xr.Dataset) -> bytes:
    """Return the dataset as a NetCDF file; the same forecast gives the same bytes."""
    encoding: dict[str, dict[str, Any]] = {
        name: {"units": TIME_UNITS, "dtype": "int64"} for name in (TIME, INIT_TIME, OBSERVED_TIME)
    }
    return bytes(dataset.to_netcdf(engine="h5netcdf", format="NETCDF4", encoding=encoding))


def write_checked(path: Path, content: bytes) -> None:
    """Write a file and read it back; raise `DamagedError` where the disk does not give back what was written."""
    write_durable(path, content)
    manifest.require(path, path.read_bytes(), manifest.facts(content), "check the disk")


def open_places(path: Path) -> xr.Dataset:
    """Return the forecasts for places of a published forecast, in memory."""
    with xr.open_dataset(path / PLACES, engine="h5netcdf", decode_timedelta=False) as stored:
        return stored.load()


def table_of(dataset: xr.Dataset) -> pd.DataFrame:
    """Return the forecasts as a table: a row for each place, valid time and quantity, with five of the quantiles."""
    rows = []
    init_time = pd.Timestamp(dataset[INIT_TIME].item()).strftime(ISO)
    for name in forecast_names(dataset):
        for place in range(dataset.sizes[PLACE]):
            for step, lead in enumerate(dataset[LEAD_TIME].values):
                quantiles = dataset[f"{name}_{QUANTILE}"].values[:, place, step]
                rows.append(
                    {
                        "name": str(dataset[PLACE_NAME].values[place]),
                        "init_time": init_time,
                        "valid_time": pd.Timestamp(dataset[TIME].values[step]).strftime(ISO),
                        "lead_minutes": f"{lead:g}",
                        "quantity": name,
                        "units": dataset[name].attrs["units"],
                        "mean": dataset[name].values[place, step],
                        **{title: quantiles[level] for level, title in SHOWN.items()},
                    }
                )
    table = pd.DataFrame(rows)
    return table[table["mean"].notna()]  # a point has no volume


def forecast_names(dataset: xr.Dataset) -> list[str]:
    """Return the names of the quantities that have a range."""
    return [str(name) for name in dataset.data_vars if f"{name}_{QUANTILE}" in dataset]


def has_places(path: Path) -> bool:
    """Return whether the published forecast at `path` has places."""
    return (path / PLACES).is_file()


def write_places(path: Path, folder: Path) -> None:
    """Copy the places of the published forecast at `path` into `folder`, as NetCDF and as a table."""
    make_folder(folder)
    replace_durable(folder / f"{path.stem}{NETCDF}", (path / PLACES).read_bytes())
    text = table_of(open_places(path)).to_csv(index=False, float_format="%.5g", lineterminator="\n")
    replace_durable(folder / f"{path.stem}{TABLE}", text.encode())
