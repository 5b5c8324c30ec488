"""Verify one model: its forecasts against what was observed, as mergeable sums in `data/scores/<model>.nc`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd
import xarray as xr
from tqdm import tqdm

from pipeline.paths import CHECKPOINTS, FORECASTS, OBSERVATIONS, SCORES
from pipeline.schema import (
    INIT_TIME,
    LEAD_TIME,
    TIME,
    VALID_TIME,
    InputError,
    SchemaError,
    X,
    Y,
    check_scores,
    field_names,
)
from pipeline.scores.spatial import MINIMUM_VALID, spacing_km, window_cells
from pipeline.scores.sums import frame_sums, label_sums, scores_of, write_sums

BLOCK_BYTES = 64 * 2**20  # of forecasts held at once; the observed frames and masks of a block are of the same size


def verify(
    forecasts: xr.Dataset,
    observed: xr.Dataset,
    thresholds: Mapping[str, Sequence[float]],
    neighbourhoods_km: Sequence[float],
) -> xr.Dataset:
    """Return the sums of one model per init time and lead, laid out as `pipeline.scores.sums` describes.

    A cell counts where both the observation at the valid time and the forecast are finite. `thresholds` are keyed by
    field name, in the field's units; fields without any get no event scores. Blocks of init times bound the memory.
    Raises `InputError` when a threshold names an unknown field, and `SchemaError` when grids or times do not match or
    a forecast is missing in a cell that was observed at init time.
    """
    names = field_names(forecasts)
    _check_inputs(forecasts, observed, names, thresholds)
    spacing = spacing_km(forecasts) if any(thresholds.values()) and neighbourhoods_km else (1.0, 1.0)
    windows = [window_cells(scale, spacing) for scale in neighbourhoods_km]
    coords = {name: forecasts[name].reset_coords(drop=True) for name in (INIT_TIME, LEAD_TIME)}
    parts = []
    for field in names:
        levels = [float(level) for level in thresholds.get(field, ())]
        blocks = [
            frame_sums(forecast, actual, np.isfinite(actual) & np.isfinite(forecast), levels, windows)
            for forecast, actual in _blocks(forecasts[field], forecasts[VALID_TIME], observed[field])
        ]
        sums = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
        units = str(forecasts[field].attrs["units"])
        parts.append(label_sums(sums, field, units, coords, levels, neighbourhoods_km))
    merged = xr.merge(parts, compat="equals", join="exact").drop_vars(VALID_TIME, errors="ignore")
    merged.attrs = {"model": str(forecasts.attrs.get("model", "")), "minimum_valid": MINIMUM_VALID}
    return check_scores(merged)


def _check_inputs(
    forecasts: xr.Dataset, observed: xr.Dataset, names: Sequence[str], thresholds: Mapping[str, Sequence[float]]
) -> None:
    unknown = sorted(set(thresholds) - set(names))
    if unknown:
        raise InputError(f"verify.thresholds: no field {unknown} in the forecasts, expected names among {list(names)}")
    for axis in (Y, X):
        if not np.array_equal(forecasts[axis].values, observed[axis].values):
            raise SchemaError(f"forecasts and observations lie on different grids: '{axis}' differs")
    for name in names:
        if name not in observed:
            raise SchemaError(f"observations: no field '{name}', which the forecasts hold")
        units = (forecasts[name].attrs.get("units"), observed[name].attrs.get("units"))
        if units[0] != units[1]:
            raise SchemaError(f"'{name}' is forecast in {units[0]!r} and observed in {units[1]!r}")


def _blocks(
    forecast: xr.DataArray, valid_time: xr.DataArray, observed: xr.DataArray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the forecast and the observation at its valid time, both `(init, lead, y, x)`, by blocks of init times."""
    inits = forecast.sizes[INIT_TIME]
    size = max(1, BLOCK_BYTES // (forecast[0].size * forecast.dtype.itemsize))
    with tqdm(total=inits, unit="init", desc=f"verify {forecast.name}", disable=not sys.stderr.isatty()) as bar:
        for start in range(0, inits, size):
            block = forecast[start : start + size]
            times = np.column_stack([block[INIT_TIME].values, valid_time[start : start + size].values])
            frames = _frames(observed, times)  # column 0 is the frame at init time
            values = block.values
            _check_complete(values, frames[:, 0], block)
            yield values, frames[:, 1:]
            bar.update(len(block))


def _frames(observed: xr.DataArray, times: np.ndarray) -> np.ndarray:
    """Return the observed frames at `times`, each read once, as `(*times.shape, y, x)`."""
    unique, inverse = np.unique(times, return_inverse=True)
    index = pd.DatetimeIndex(observed[TIME].values).get_indexer(pd.DatetimeIndex(unique))
    if (index < 0).any():
        raise SchemaError(f"observations: no frame at {unique[index < 0][0]}, which the forecasts reach")
    return np.asarray(observed.isel({TIME: index}).values[inverse.reshape(times.shape)])


def _check_complete(values: np.ndarray, at_init: np.ndarray, block: xr.DataArray) -> None:
    """Raise `SchemaError` where a forecast is missing in a cell that was observed at its init time."""
    missing = ~np.isfinite(values) & np.isfinite(at_init)[:, None]
    if missing.any():
        init, lead = np.argwhere(missing.any(axis=(2, 3)))[0]
        raise SchemaError(
            f"forecasts: '{block.name}' of init time {block[INIT_TIME].values[init]} is missing at lead "
            f"{block[LEAD_TIME].values[lead].astype('timedelta64[m]')} in {int(missing[init, lead].sum())} cells that "
            "were observed at init time; a model must fill every cell it has seen"
        )


def main() -> None:
    """Verify the model named on the command line and log its scores."""
    from pipeline import config, store, tracking  # the tracker is slow to import and the functions above do without

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    model = parser.parse_args().model
    options = config.load().verify
    forecasts = store.open_forecasts(FORECASTS / f"{model}.zarr")
    observed = store.open_observations(OBSERVATIONS)
    sums = verify(forecasts, observed, options.thresholds, options.neighbourhoods_km)
    write_sums(sums, SCORES / f"{model}.nc")
    tracking.log_scores(checkpoint=CHECKPOINTS / model, model=model, scores=scores_of(sums))


if __name__ == "__main__":
    from pipeline import config

    config.run_stage(main)
