"""Scores by group: where, how strong, when, and in which event; each group's sums are sums like any other.

Groups of init times are parts of a model's sums. Regions and classes of observed intensity are counted beside the whole
field and kept as `region_<sum>` and `class_<sum>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from fieldcast.pipeline.config import Region
from fieldcast.pipeline.datasets.schema import INIT_TIME, X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.verification import categorical, continuous
from fieldcast.pipeline.verification.probabilistic import cells_of, class_of

REGION, CLASS = "region", "class"
CLASS_SUMS = ("n", "weight", "error", "absolute_error", "squared_error")
REGION_SUMS = (
    *continuous.SUMS, "weight", "frames", *continuous.MOMENTS, *categorical.SUMS, "crps", "brier",
    "expected_squared_error", "interval_covered",
)  # fmt: skip


def class_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    thresholds: Sequence[float],
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the sums `(frame, class)` of valid cells by class of the observed value, as `class_<sum>` of `CLASS_SUMS`.

    The arrays are `(frame, y, x)`. Class 0 is below the first of the rising thresholds, class k at or above the k-th.
    """
    cells, groups = cells_of(observed, valid, rows), len(thresholds) + 1
    group = class_of(cells.observed, thresholds)
    error = forecast[valid].astype(np.float64) - cells.observed
    count = np.bincount(cells.frame * groups + group, minlength=cells.frames * groups)
    maps = (np.ones(error.shape), error, np.abs(error), error**2)
    weighted = [cells.totals(values, group, groups) for values in maps]
    kept = (count.reshape(cells.frames, groups).astype(np.float64), *weighted)
    return {f"{CLASS}_{name}": values for name, values in zip(CLASS_SUMS, kept, strict=True)}


def region_cuts(dataset: xr.Dataset, regions: Mapping[str, Region]) -> list[tuple[slice, slice]]:
    """Return the rows and columns of each region; raise `InputError` where it holds no cell of the grid."""
    return [(_cut(dataset[Y], name, region.y), _cut(dataset[X], name, region.x)) for name, region in regions.items()]


def by_hour(sums: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return the sums by UTC hour of the init time, '00' to '23'; hours without any are left out."""
    hours = sums[INIT_TIME].dt.hour.values
    return {f"{hour:02d}": sums.isel({INIT_TIME: hours == hour}) for hour in np.unique(hours)}


def by_event(sums: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return the sums by event, named by the minute of its first init time.

    An event ends where the gap to the next init time is longer than twice the usual step, the median of all gaps.
    """
    ordered = sums.sortby(INIT_TIME)
    gaps = np.diff(ordered[INIT_TIME].values).astype("timedelta64[ns]").astype(np.int64)
    number = np.concatenate([[0], np.cumsum(gaps > 2 * np.median(gaps) if gaps.size else gaps)])
    events = (ordered.isel({INIT_TIME: number == event}) for event in np.unique(number))
    return {str(event[INIT_TIME].values[0].astype("datetime64[m]")): event for event in events}


def by_region(sums: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return one field's sums, plain names, by region; empty where no region was asked for."""
    names = [str(name) for name in sums[REGION].values] if REGION in sums.coords else []
    return {name: _group(sums, REGION, i) for i, name in enumerate(names)}


def by_intensity(sums: xr.Dataset) -> dict[str, xr.Dataset]:
    """Return one field's sums, plain names, by class of the observed value: 'below 1', '1 to 5', '5 and above'.

    They hold what errors and the CRPS need. Empty where the field has no thresholds.
    """
    bounds = sums[CLASS].values.tolist() if CLASS in sums.coords else []
    names = [f"{low:g} to {high:g}" for low, high in pairwise(bounds[1:])]
    if bounds:
        names = [f"below {bounds[1]:g}", *names, f"{bounds[-1]:g} and above"]
    return {name: _group(sums, CLASS, i) for i, name in enumerate(names)}


def _group(sums: xr.Dataset, dim: str, position: int) -> xr.Dataset:
    own = sums[[name for name in sums.data_vars if str(name).startswith(f"{dim}_")]]
    chosen = own.isel({dim: position}, drop=True)
    return chosen.rename({name: str(name).removeprefix(f"{dim}_") for name in chosen.data_vars})


def _cut(axis: xr.DataArray, name: str, ends: tuple[float, float]) -> slice:
    inside = np.flatnonzero((axis.values >= min(ends)) & (axis.values <= max(ends)))
    if not inside.size:
        low, high = float(axis.values.min()), float(axis.values.max())
        raise InputError(
            f"verify.regions.{name}.{axis.name} is {list(ends)}, where the grid has no cell; expected a range within "
            f"{low:g} to {high:g} {axis.attrs.get('units', '')}".rstrip()
        )
    return slice(int(inside[0]), int(inside[-1]) + 1)
