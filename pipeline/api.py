"""What `import fieldcast` offers to notebooks and programs: models, observations, forecasts and their scores.

Paths may be text. Everything here is done by the functions that the stages and the schedule use, so the numbers are
theirs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import xarray as xr

from fieldcast.pipeline.config import StormCell, Verify
from fieldcast.pipeline.datasets import manifest, store
from fieldcast.pipeline.datasets.paths import OBSERVATIONS
from fieldcast.pipeline.datasets.preparation.climatology import read_climatology
from fieldcast.pipeline.datasets.schema import INIT_TIME, TIME, VALID_TIME, field_names
from fieldcast.pipeline.datasets.signature import Statistics, compare_signatures, signature_of
from fieldcast.pipeline.datasets.times import from_minutes
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting.dataset import LoadedModel
from fieldcast.pipeline.live import mlflow_sync
from fieldcast.pipeline.live.archive.publish import open_forecasts as open_published
from fieldcast.pipeline.live.archive.publish import open_products
from fieldcast.pipeline.verification import blocks
from fieldcast.pipeline.verification.aggregation import STORM, THRESHOLD, field_sums, fields_of, units_of
from fieldcast.pipeline.verification.scores import TABLE

__all__ = ["load", "open_forecasts", "open_observations", "open_products", "verify"]

REGISTERED = re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)")


def load(model: str | os.PathLike[str], device: str | None = None) -> LoadedModel:
    """Return a trained model, whose method `forecast` takes an xarray dataset with the history.

    `model` is a checkpoint folder such as `data/checkpoints/unet`, or `models:/NAME@ALIAS` for a version that MLflow
    has registered, such as `models:/storms@champion`; `MLFLOW_TRACKING_URI` says where, else `mlflow.db` in the working
    directory does. It runs on `device` (`cpu`, `cuda`), by default on the GPU where there is one.

    Raise `InputError` where there is no such model, `DamagedError` where its bytes have changed, `BusyError` where
    MLflow does not answer.
    """
    text = os.fspath(model)
    if not text.startswith("models:"):
        return LoadedModel.read(Path(text), device)
    found = REGISTERED.fullmatch(text)
    if found is None:
        raise InputError(f"{text}: expected models:/NAME@ALIAS, such as models:/storms@champion, or a folder")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fieldcast" / "models"
    registered = mlflow_sync.fetch_registered(found["name"], found["alias"], cache)
    return LoadedModel.read(registered.folder, device)


def open_observations(path: str | os.PathLike[str] = OBSERVATIONS) -> xr.Dataset:
    """Return observations `(time, y, x)`, lazily: the store that the stage `ingest` wrote.

    Raise `InputError` where there is none, `DamagedError` where a byte has changed.
    """
    return store.open_observations(Path(path))


def open_forecasts(
    path: str | os.PathLike[str] = "data/live", start: datetime | str | None = None, end: datetime | str | None = None
) -> xr.Dataset:
    """Return forecasts `(init_time, lead_time, [member,] y, x)`, lazily, with init times from `start` to `end`.

    `path` is a store such as `data/forecasts/unet.zarr`, which the stage `forecast` wrote, or the folder of scheduled
    forecasts, of which all that is published in that span is one dataset. Both ends are included; times are UTC.

    Raise `InputError` where there are none, `DamagedError` where a byte has changed.
    """
    folder = Path(path)
    if folder.suffix != ".zarr" and not any((folder / name).exists() for name in (store.METADATA, manifest.MANIFEST)):
        return open_published(folder, start, end)
    return store.open_forecasts(folder).sel({INIT_TIME: slice(start, end)})


def verify(
    forecasts: xr.Dataset | str | os.PathLike[str],
    observed: xr.Dataset | str | os.PathLike[str] = OBSERVATIONS,
    thresholds: Mapping[str, Sequence[float]] | None = None,
    neighbourhoods_km: Sequence[float] = (),
    storm_cells: Mapping[str, Mapping[str, float]] | None = None,
    prepared: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """Return the scores of forecasts `([threshold, [neighbourhood,]] lead_time)` over all their init times.

    Both sides are datasets or stores; `thresholds` are by variable in its units and have scores of events, with
    `neighbourhoods_km` the fractions skill score too; `storm_cells` are by variable, such as `{"rain_rate":
    {"at_least": 5, "area_km2": 16, "within_km": 20}}`. With the same of them, and the folder `prepared`
    (`data/prepared`, for anomaly correlation, PSNR and SSIM), the numbers are those of the stages `verify` and
    `compare`. A cell counts where forecast and observation have a value.

    Raise `InputError` for other units or grids, and for a valid time without an observed frame, by name.
    """
    predicted = forecasts if isinstance(forecasts, xr.Dataset) else open_forecasts(forecasts)
    actual = observed if isinstance(observed, xr.Dataset) else open_observations(observed)
    _check_alike(predicted, actual)
    options = Verify(
        thresholds={name: [float(level) for level in levels] for name, levels in (thresholds or {}).items()},
        neighbourhoods_km=[float(width) for width in neighbourhoods_km],
        storm_cells={name: StormCell(**options) for name, options in (storm_cells or {}).items()},
    )
    climatology, data_range = None, None
    if prepared is not None:
        climatology = read_climatology(Path(prepared))
        data_range = {channel.name: channel.max - channel.min for channel in Statistics.read(Path(prepared)).channels}
    return _scores(blocks.verify(predicted, actual, options, climatology, data_range))


def _check_alike(forecasts: xr.Dataset, observed: xr.Dataset) -> None:
    """Raise `InputError` unless the observations have the forecasts' variables, units, grid and valid times."""
    names, step, first = field_names(forecasts), from_minutes(1), forecasts[INIT_TIME].values[0]
    wanted, found = (signature_of(grid, names, step, first) for grid in (forecasts, observed))
    if difference := compare_signatures(wanted, found):
        raise InputError(f"observed: {difference}, as the forecasts: choose observations of the same units and grid")
    times = forecasts[VALID_TIME].values.ravel()
    missing = [time for time in times if time not in observed.indexes[TIME]]
    if missing:
        raise InputError(
            f"observed: there is no frame at {missing[0].astype('datetime64[s]')}, a valid time of the forecasts:"
            f" choose earlier init times, or more observations than those up to {observed[TIME].values[-1]}"
        )


def _scores(sums: xr.Dataset) -> xr.Dataset:
    """Return every score that the sums tell, `([threshold, [scale,]] lead_time)`, over all init times.

    With more than one field the names of its scores, and of its thresholds, begin with `<field>.`, as those of sums.
    """
    fields = fields_of(sums)
    parts = []
    for field in fields:
        own = field_sums(sums, field)
        units, prefix = units_of(sums, field), f"{field}." if len(fields) > 1 else ""
        scores = {}
        for definition in TABLE.values():
            if set(definition.sums) <= set(own.data_vars):
                of_field = units if definition.unit == "the field's" else definition.unit.replace("none", "1")
                attributes = {"long_name": definition.title, "units": of_field}
                scores[prefix + definition.name] = definition.function(own[list(definition.sums)]).assign_attrs(
                    attributes
                )
        labelled = xr.Dataset(scores)
        for name in {THRESHOLD, STORM} & set(labelled.coords):
            labelled[name].attrs["units"] = units
            labelled = labelled.rename({name: prefix + name})
        parts.append(labelled)
    return xr.merge(parts, compat="equals", join="exact").assign_attrs(model=sums.attrs.get("model", ""))
