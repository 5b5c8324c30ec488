"""Sums of one model: its forecasts against what was observed, block by block."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import xarray as xr

from fieldcast.pipeline.config import Verify
from fieldcast.pipeline.datasets.finite import refuse_infinite
from fieldcast.pipeline.datasets.grid import row_weights, spacing_km, window_cells
from fieldcast.pipeline.datasets.parallel import run_blocks
from fieldcast.pipeline.datasets.paths import FORECASTS, OBSERVATIONS
from fieldcast.pipeline.datasets.schema import (
    DECISIONS,
    INIT_TIME,
    LEAD_TIME,
    MEMBER,
    ONLINE,
    TIME,
    VALID_TIME,
    X,
    Y,
    check_scores,
    field_names,
)
from fieldcast.pipeline.errors import InputError, SchemaError
from fieldcast.pipeline.verification import spectral
from fieldcast.pipeline.verification.aggregation import STORM, Extras, frame_sums, label_sums
from fieldcast.pipeline.verification.probabilistic import voted, votes_at
from fieldcast.pipeline.verification.spatial import MINIMUM_VALID
from fieldcast.pipeline.verification.storm_cells import StormCellOptions
from fieldcast.pipeline.verification.strata import REGION, region_cuts

BLOCK_BYTES = 64 * 2**20  # of forecasts held at once; the observed frames and masks of a block are of the same size


@dataclass(frozen=True)
class FieldOptions:
    """Thresholds, windows and further sums of one field."""

    thresholds: Sequence[float]  # in the field's units
    windows: Sequence[tuple[int, int]]  # in cells (y, x)
    extras: Extras


def verify(
    forecasts: xr.Dataset,
    observed: xr.Dataset,
    options: Verify,
    climatology: xr.Dataset | None = None,
    data_range: Mapping[str, float] | None = None,
    scheduler: str | None = "synchronous",
) -> xr.Dataset:
    """Return the sums of one model per init time and lead, laid out as `pipeline.verification.aggregation` describes.

    A cell counts where both the observation at the valid time and the forecast, all its members, are finite; for
    scores of one value the forecast is the mean over members, and an event is forecast where as many of them reach it
    as the model's decisions say, else where the mean does. `climatology` holds fields `(hour, y, x)`, 24 or one, and
    `data_range` the highest less the lowest value of the training period by field; without them anomaly correlation, or
    PSNR and SSIM, are left out, and without units of length spectra are. Blocks of init times and leads bound the
    memory; `scheduler` says where they run, as in `pipeline.datasets.parallel.run_blocks`.

    Raises `InputError` when a threshold names an unknown field, a region holds no cell or a value is infinite, and
    `SchemaError` when grids or times do not match or a forecast is missing in a cell that was observed at init time.
    """
    names = field_names(forecasts)
    for key, by_field in (("thresholds", options.thresholds), ("storm_cells", options.storm_cells)):
        _check_names(f"verify.{key}", by_field, names)
    _check_inputs(forecasts, observed, names)
    coords = {name: forecasts[name].reset_coords(drop=True) for name in (INIT_TIME, LEAD_TIME)}
    labels = {REGION: np.asarray(list(options.regions), str)}
    parts = []
    for field in names:
        field_options = _field_options(forecasts, field, options, climatology, data_range or {})
        jobs = _blocks(forecasts[field])
        count = partial(block_sums, forecasts[field], observed[field], field_options)
        blocks = run_blocks(count, jobs, scheduler=scheduler, description=f"verify {field}", unit="block")
        if storm := options.storm_cells.get(field):
            labels[STORM] = np.asarray([storm.at_least])
        if field_options.extras.spacing:
            shape = (forecasts.sizes[Y], forecasts.sizes[X])
            labels[spectral.WAVELENGTH] = spectral.wavelengths_km(shape, field_options.extras.spacing)
        units, scales = str(forecasts[field].attrs["units"]), options.neighbourhoods_km
        parts.append(label_sums(_joined(jobs, blocks), field, units, coords, field_options.thresholds, scales, labels))
    merged = xr.merge(parts, compat="equals", join="exact").drop_vars(VALID_TIME, errors="ignore")
    merged.attrs = {
        "model": str(forecasts.attrs.get("model", "")),
        "minimum_valid": MINIMUM_VALID,
        "members": str(forecasts.attrs.get("members", "ensemble" if MEMBER in forecasts.dims else "none")),
        **({ONLINE: forecasts.attrs[ONLINE]} if ONLINE in forecasts.attrs else {}),
    }
    return check_scores(merged)


def block_sums(
    forecast: xr.DataArray,
    observed: xr.DataArray,
    field_options: FieldOptions,
    start: int,
    stop: int,
    first: int,
    last: int,
) -> dict[str, np.ndarray]:
    """Return the sums of the init times `start` to `stop` and the leads `first` to `last`, both ends excluded."""
    block = forecast[start:stop, first:last]
    valid_time = block[VALID_TIME].values
    frames = _frames(observed, np.column_stack([block[INIT_TIME].values, valid_time]))  # column 0 is the init time's
    values = block.values
    _refuse_infinite(forecast, values, frames, block)
    complete = np.isfinite(values)
    if MEMBER in block.dims:
        complete = complete.all(axis=2)
    _check_complete(complete, frames[:, 0], block)
    actual = frames[:, 1:]
    hours = pd.DatetimeIndex(valid_time.ravel()).hour.to_numpy().reshape(valid_time.shape)
    return frame_sums(
        values,
        actual,
        np.isfinite(actual) & complete,
        field_options.thresholds,
        field_options.windows,
        field_options.extras.of_leads(first, last),
        hours,
    )


def _field_options(
    forecasts: xr.Dataset,
    field: str,
    options: Verify,
    climatology: xr.Dataset | None,
    data_range: Mapping[str, float],
) -> FieldOptions:
    levels = [float(level) for level in options.thresholds.get(field, ())]
    windowed = bool(any(options.thresholds.values()) and options.neighbourhoods_km)
    spacing = _spacing(forecasts, needed=windowed or bool(options.storm_cells))
    storm = options.storm_cells.get(field)
    extras = Extras(
        rows=row_weights(forecasts),
        climatology=climatology[field].values if climatology is not None and field in climatology else None,
        data_range=data_range.get(field),
        spacing=spacing,
        regions=region_cuts(forecasts, options.regions),
        quantiles=forecasts.attrs.get("members") == "quantiles",
        votes=_votes(forecasts[field], levels),
        storms=StormCellOptions(**storm.model_dump(), spacing=spacing) if storm and spacing else None,
    )
    windows = [window_cells(scale, spacing) for scale in options.neighbourhoods_km] if levels and spacing else []
    return FieldOptions(levels, windows, extras)


def _votes(forecast: xr.DataArray, thresholds: Sequence[float]) -> np.ndarray | None:
    """Return how many members decide on an event, (lead, threshold); None where the mean over members decides."""
    if DECISIONS not in forecast.attrs or MEMBER not in forecast.dims or not thresholds:
        return None
    table = json.loads(forecast.attrs[DECISIONS])
    return votes_at(np.array(table["levels"]), np.array(table["votes"]), np.array(thresholds))


def deciding_field(forecast: xr.DataArray, threshold: float) -> np.ndarray:
    """Return the field (lead, y, x) of one init time that tells where the threshold is forecast to be reached.

    With members (lead, member, y, x) that is where as many of them reach it as the model's decisions say, else where
    their mean does.
    """
    values = forecast.values
    if MEMBER not in forecast.dims:
        return values
    votes = _votes(forecast, [threshold])
    return values.mean(axis=1) if votes is None else voted(np.sort(values, axis=1), votes[:, 0])


def _spacing(forecasts: xr.Dataset, needed: bool) -> tuple[float, float] | None:
    """Return the grid spacing in km; where its units do not tell, None, or `InputError` when it is needed."""
    try:
        return spacing_km(forecasts)
    except InputError:
        if needed:
            raise
        return None


def _blocks(forecast: xr.DataArray) -> list[tuple[int, int, int, int]]:
    """Return (start, stop, first, last) of blocks of init times and leads, of at most `BLOCK_BYTES` or one field.

    Leads are divided where one init time alone is more, as large fields with many members are.
    """
    inits, leads = forecast.sizes[INIT_TIME], forecast.sizes[LEAD_TIME]
    fields = max(1, BLOCK_BYTES // (forecast[0, 0].size * forecast.dtype.itemsize))
    high, wide = max(1, fields // leads), min(leads, fields)
    return [
        (start, min(start + high, inits), first, min(first + wide, leads))
        for start in range(0, inits, high)
        for first in range(0, leads, wide)
    ]


def _joined(
    jobs: Sequence[tuple[int, int, int, int]], blocks: Sequence[Mapping[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Return the sums `(init, lead, …)` of all blocks, which come in order of init times, then leads."""
    starts = sorted({job[0] for job in jobs})
    rows = [[block for job, block in zip(jobs, blocks, strict=True) if job[0] == start] for start in starts]
    return {
        name: np.concatenate([np.concatenate([block[name] for block in row], axis=1) for row in rows])
        for name in blocks[0]
    }


def _check_names(key: str, by_field: Mapping[str, object], names: Sequence[str]) -> None:
    unknown = sorted(set(by_field) - set(names))
    if unknown:
        raise InputError(f"{key}: no field {unknown} in the forecasts, expected names among {list(names)}")


def _check_inputs(forecasts: xr.Dataset, observed: xr.Dataset, names: Sequence[str]) -> None:
    for axis in (Y, X):
        if not np.array_equal(forecasts[axis].values, observed[axis].values):
            raise SchemaError(f"forecasts and observations lie on different grids: '{axis}' differs")
    for name in names:
        if name not in observed:
            raise SchemaError(f"observations: no field '{name}', which the forecasts hold")
        units = (forecasts[name].attrs.get("units"), observed[name].attrs.get("units"))
        if units[0] != units[1]:
            raise SchemaError(f"'{name}' is forecast in {units[0]!r} and observed in {units[1]!r}")


def _frames(observed: xr.DataArray, times: np.ndarray) -> np.ndarray:
    """Return the observed frames at `times`, each read once, as `(*times.shape, y, x)`."""
    unique, inverse = np.unique(times, return_inverse=True)
    index = pd.DatetimeIndex(observed[TIME].values).get_indexer(pd.DatetimeIndex(unique))
    if (index < 0).any():
        raise SchemaError(f"observations: no frame at {unique[index < 0][0]}, which the forecasts reach")
    return np.asarray(observed.isel({TIME: index}).values[inverse.reshape(times.shape)])


def _refuse_infinite(forecast: xr.DataArray, values: np.ndarray, observed: np.ndarray, block: xr.DataArray) -> None:
    valid_time, init_time = block[VALID_TIME].values, block[INIT_TIME].values[:, None]
    refuse_infinite(OBSERVATIONS, str(forecast.name), observed, np.concatenate([init_time, valid_time], axis=1))
    times = np.broadcast_to(valid_time.reshape(*valid_time.shape, *[1] * (values.ndim - 4)), values.shape[:-2])
    refuse_infinite(FORECASTS, str(forecast.name), values, times, "run the forecast stage again")


def _check_complete(complete: np.ndarray, at_init: np.ndarray, block: xr.DataArray) -> None:
    """Raise `SchemaError` where a forecast is missing in a cell that was observed at its init time."""
    missing = ~complete & np.isfinite(at_init)[:, None]
    if missing.any():
        init, lead = np.argwhere(missing.any(axis=(2, 3)))[0]
        raise SchemaError(
            f"forecasts: '{block.name}' of init time {block[INIT_TIME].values[init]} is missing at lead "
            f"{block[LEAD_TIME].values[lead].astype('timedelta64[m]')} in {int(missing[init, lead].sum())} cells that "
            "were observed at init time; a model must fill every cell it has seen"
        )
