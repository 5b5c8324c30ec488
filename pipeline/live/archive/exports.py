"""Copies of a published forecast for other tools: one NetCDF file, or one GeoTIFF a variable and lead time.

The published forecast is the Zarr store; its copies can be removed and written again at any time. A copy is written
beside its place, synced and renamed, so that a reader sees a whole one or none. The same forecast gives the same bytes
as long as the libraries stay the same. Coordinates in km become metres where the CRS is in metres, as other tools
expect.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import xarray as xr

from fieldcast.pipeline.config import Verify
from fieldcast.pipeline.datasets.atomic import (
    make_folder,
    replace_durable,
    replacing,
    sweep_partial,
    write_durable,
)
from fieldcast.pipeline.datasets.grid import unit_of, unit_of_axis
from fieldcast.pipeline.datasets.schema import (
    CONVENTIONS,
    GRID_MAPPING,
    INIT_TIME,
    LEAD_TIME,
    MEMBER,
    TIME_UNITS,
    VALID_TIME,
    X,
    Y,
    check_forecasts,
    field_names,
    lead_minutes,
)
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.places.issue import NETCDF, PLACES, TABLE
from fieldcast.pipeline.storms.geojson import encoded, feature_collection

ISO = "%Y-%m-%dT%H:%M:%SZ"
FURTHER, CELLS = ".products.nc", ".geojson"  # behind the stamp
UNEVEN = 1e-2  # of a cell: largest distance of coordinates from even spacing; float32 ones are rounded


def check_kinds(kinds: Sequence[str], verify: Verify) -> None:
    """Raise `InputError` when a kind of copy is wanted whose packages are not installed, or storm cells of no rule."""
    if "geojson" in kinds and not verify.storm_cells:
        raise InputError(
            "live.copies has 'geojson', but verify.storm_cells does not say what a storm cell is: set it, such as "
            "{rain_rate: {at_least: 5, area_km2: 16}}, or leave 'geojson' out"
        )
    if "geotiff" in kinds:
        try:
            import rioxarray  # noqa: F401  # xarray's objects get their `rio` by it
        except ImportError:
            raise InputError(
                "live.copies has 'geotiff', but rioxarray is not installed: pip install 'fieldcast[geo]', "
                "or leave it out of live.copies"
            ) from None


def write_copies(
    forecast: xr.Dataset,
    folder: Path,
    stamp: str,
    kinds: Sequence[str],
    products: xr.Dataset | None = None,
    verify: Verify | None = None,
) -> list[Path]:
    """Write one forecast (init_time 1, lead_time, y, x) into `folder` as each of `kinds` and return what was written.

    'netcdf' is the file `<stamp>.nc`, 'geotiff' the folder `<stamp>` with `<variable>_<lead>min.tif`; `products` go
    into `<stamp>.products.nc` and into images such as `rain_rate_at_least_1_030min.tif`. 'geojson' is the file
    `<stamp>.geojson` of storm cells, as `verify.storm_cells` has them. Existing ones are replaced.
    Raise `InputError` where a package is missing or a format cannot hold the grid, `OSError` as disks do.
    """
    verify = verify or Verify()
    check_kinds(kinds, verify)
    if forecast.sizes[INIT_TIME] != 1:
        raise ValueError(f"forecast has {forecast.sizes[INIT_TIME]} init times, expected 1")
    writers: dict[str, Callable[[list[xr.Dataset], Path, str], Path]] = {
        "netcdf": _netcdfs,
        "geotiff": _geotiffs,
        "geojson": partial(_geojson, verify),
    }
    datasets = [check_forecasts(forecast), *([] if products is None else [products])]
    ready = [_in_metres(dataset.load().drop_encoding()) for dataset in datasets]
    make_folder(folder)
    return [writers[kind](ready, folder, stamp) for kind in kinds]


def has_copy(folder: Path, stamp: str, kind: str) -> bool:
    """Return whether `write_copies`, or `write_places`, has written this kind for `stamp`."""
    written = {"netcdf": f"{stamp}.nc", "geotiff": stamp, "geojson": f"{stamp}{CELLS}", PLACES: f"{stamp}{TABLE}"}
    return (folder / written[kind]).exists()


def remove_copies(folder: Path, stamp: str) -> None:
    """Remove what `write_copies` wrote for `stamp`, finished or not."""
    images = folder / stamp
    sweep_partial(images)
    if images.exists():
        images.rename(folder / f".{stamp}.partial")  # gone at once for readers, not file by file
        sweep_partial(images)
    for ending in (".nc", FURTHER, CELLS, NETCDF, TABLE):
        for name in (f"{stamp}{ending}", f".{stamp}{ending}.partial"):
            (folder / name).unlink(missing_ok=True)


def _netcdfs(datasets: Sequence[xr.Dataset], folder: Path, stamp: str) -> Path:
    target = folder / f"{stamp}.nc"
    for dataset in datasets[1:]:  # first: whoever finds the forecast finds its products
        _netcdf(dataset, folder / f"{stamp}{FURTHER}")
    _netcdf(datasets[0], target)
    return target


def _geojson(verify: Verify, datasets: Sequence[xr.Dataset], folder: Path, stamp: str) -> Path:
    target = folder / f"{stamp}{CELLS}"
    replace_durable(target, encoded(feature_collection(datasets[0], verify)))
    return target


def _netcdf(forecast: xr.Dataset, target: Path) -> None:
    encoding: dict[str, dict[str, Any]] = {
        **{
            name: {
                "zlib": True,
                "complevel": 4,
                "shuffle": True,
                "chunksizes": (*[1] * (forecast[name].ndim - 2), forecast.sizes[Y], forecast.sizes[X]),
                "_FillValue": np.float32("nan"),
            }
            for name in field_names(forecast)
        },
        **{name: {"units": TIME_UNITS, "dtype": "int64"} for name in (INIT_TIME, VALID_TIME)},
        **{name: {"_FillValue": None} for name in (Y, X)},
    }
    content = _cf(forecast).to_netcdf(engine="h5netcdf", format="NETCDF4", encoding=encoding)
    replace_durable(target, bytes(content))


def _cf(forecast: xr.Dataset) -> xr.Dataset:
    """Return the forecast with plain attributes, a period in minutes and the CRS beside the fields, as CF asks."""
    leads = lead_minutes(forecast)
    minutes = np.asarray(leads, np.int32 if all(isinstance(lead, int) for lead in leads) else np.float64)
    # not as a timedelta, which would get an attribute that only xarray knows
    period = xr.Variable(LEAD_TIME, minutes, {"standard_name": "forecast_period", "units": "minutes"})
    ready = forecast.assign_coords({LEAD_TIME: period})
    for name in field_names(ready):
        limits = {
            key: np.float32(value) for key, value in ready[name].attrs.items() if key in ("valid_min", "valid_max")
        }
        ready[name].attrs = {**_plain(ready[name].attrs), **limits}  # limits of the field's own type
    for axis in (Y, X):
        ready[axis].attrs = {**_plain(ready[axis].attrs), "axis": axis.upper()}
    ready.attrs = {**_plain(ready.attrs), "Conventions": CONVENTIONS}
    return ready.reset_coords(GRID_MAPPING) if GRID_MAPPING in ready.coords else ready


def _geotiffs(datasets: Sequence[xr.Dataset], folder: Path, stamp: str) -> Path:
    target = folder / stamp
    crs = _crs(datasets[0])
    _require_raster(datasets[0], crs)
    with replacing(target) as partial:
        partial.mkdir()
        for dataset in datasets:
            ready = dataset.sortby(Y, ascending=False).sortby(X)  # north up and west left: some tools expect that
            for name, layer in _layers(ready):
                for step, lead in enumerate(lead_minutes(ready)):
                    moment = layer.isel({LEAD_TIME: step})
                    times = {name: moment[name].dt.strftime(ISO).item() for name in (INIT_TIME, VALID_TIME)}
                    tags = {**_plain(ready.attrs), **_plain(moment.attrs), **times, "lead_minutes": lead}
                    write_durable(partial / f"{name}_{lead:03d}min.tif", _geotiff(moment, crs, tags))
    return target


def _layers(dataset: xr.Dataset) -> Iterator[tuple[str, xr.DataArray]]:
    """Yield name and field (lead_time, y, x) of every variable, by itself for each member, threshold and quantile."""
    for name in field_names(dataset):
        field = dataset[name].isel({INIT_TIME: 0})
        further = [dim for dim in field.dims if dim not in (LEAD_TIME, Y, X)]
        if not further:
            yield name, field
            continue
        of = f"_{MEMBER}" if further == [MEMBER] else ""  # thresholds and quantiles are in the variable's name
        for i, value in enumerate(dataset[further[0]].values):
            yield f"{name}{of}_{value:g}", field.isel({further[0]: i}).drop_vars(further)


def _geotiff(field: xr.DataArray, crs: pyproj.CRS | None, tags: Mapping[str, Any]) -> bytes:
    """Return a field (y, x) as the content of a GeoTIFF, missing cells as NaN."""
    from rasterio import MemoryFile

    located = xr.DataArray(field.values, {Y: field[Y].values, X: field[X].values}, (Y, X)).rio.write_nodata(np.nan)
    if crs is not None:
        located = located.rio.write_crs(crs)
    with MemoryFile(ext=".tif") as memory:  # GDAL on a full disk gives no error number
        located.rio.to_raster(memory.name, driver="GTiff", compress="deflate", predictor=3, tags=dict(tags))
        content = bytes(memory.getbuffer())
    with MemoryFile(content) as memory, memory.open() as image:
        if crs is not None and image.crs is None:
            raise InputError(
                f"live.copies has 'geotiff', but no GeoTIFF can hold the CRS of the grid ({crs.name}): "
                "use 'netcdf', which holds any"
            )
    return content


def _crs(forecast: xr.Dataset) -> pyproj.CRS | None:
    return pyproj.CRS.from_cf(forecast[GRID_MAPPING].attrs) if GRID_MAPPING in forecast.coords else None


def _in_metres(forecast: xr.Dataset) -> xr.Dataset:
    """Return the forecast with x and y in metres if they are in km and the CRS is in metres, else as it is."""
    crs = _crs(forecast)
    if crs is None or crs.axis_info[0].unit_name != "metre":
        return forecast
    scaled = {
        axis: (axis, 1000 * forecast[axis].values, {**forecast[axis].attrs, "units": "m"})
        for axis in (Y, X)
        if unit_of_axis(forecast[axis]) == "kilometre"
    }
    return forecast.assign_coords(scaled)


def _require_raster(forecast: xr.Dataset, crs: pyproj.CRS | None) -> None:
    """Raise `InputError` unless x and y are evenly spaced and in the units of the CRS, if there is one."""
    for axis in (Y, X):
        values, units = forecast[axis].values, str(forecast[axis].attrs.get("units", ""))
        even = np.linspace(values[0], values[-1], values.size)
        if values.size < 2 or np.abs(values - even).max() > UNEVEN * abs(even[1] - even[0]):
            raise InputError(
                f"live.copies has 'geotiff', but {axis} of the grid is not evenly spaced over at least 2 cells: "
                "use 'netcdf', which holds any grid"
            )
        unit = crs.axis_info[0].unit_name if crs is not None else None
        if unit is not None and unit not in (units, unit_of(units)):
            raise InputError(
                f"live.copies has 'geotiff', but {axis} of the grid has units '{units}', while its CRS is in {unit}: "
                "use 'netcdf', or correct the units in the source's files"
            )


def _plain(attributes: Mapping[Any, Any]) -> dict[str, Any]:
    """Return attributes that every file format has: texts and numbers as they are, the rest as JSON."""
    return {
        str(name): value if isinstance(value, str | float | np.number) or type(value) is int else json.dumps(value)
        for name, value in attributes.items()
        if value is not None
    }
