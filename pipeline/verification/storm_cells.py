"""Scores of storm cells: connected areas at or above a threshold, matched between a forecast and what was observed.

Cells of the grid are called grid cells here. A storm cell of the forecast and one that was observed are the same where
their centres are near enough; of all ways to pair them the one with the most pairs, and among those with the least sum
of distances, is taken (Hungarian algorithm). Davis, Brown and Bullock (2006), Mon. Wea. Rev. 134, score objects alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.verification.ratios import ratio

COUNTS = ("storm_hits", "storm_misses", "storm_false_alarms")
DISTANCE = "storm_distances"
AREAS = ("storm_forecast_areas", "storm_observed_areas")
PEAKS = ("storm_forecast_peaks", "storm_observed_peaks")
SUMS = (*COUNTS, DISTANCE, *AREAS, *PEAKS)
TOUCHING = np.ones((3, 3))  # grid cells that meet at a corner belong together
FAR = 1e9  # km: what a pair beyond reach costs, so that as many as possible are within


@dataclass(frozen=True)
class StormCellOptions:
    """What is a storm cell, and how near two of them are the same; on a grid with this spacing (y, x) in km."""

    at_least: float  # the field's units
    area_km2: float
    within_km: float
    spacing: tuple[float, float]


@dataclass(frozen=True)
class StormCells:
    """Storm cells of one field, the largest first: centres (n, 2) in km, areas (n,) in km2 and highest values (n,).

    Centres are distances (y, x) from the first grid cell; `labels` (y, x) has the number of the storm cell in each grid
    cell, from 1, and 0 outside of all.
    """

    centres: np.ndarray
    areas: np.ndarray
    peaks: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.areas)


def find(field: np.ndarray, options: StormCellOptions) -> StormCells:
    """Return the storm cells of a field (y, x), in which NaN is below every threshold."""
    found, count = ndimage.label(field >= options.at_least, TOUCHING)
    y_km, x_km = options.spacing
    areas = np.bincount(found.ravel(), minlength=count + 1)[1:] * (y_km * x_km)
    kept = 1 + np.flatnonzero(areas >= options.area_km2)
    kept = kept[np.argsort(-areas[kept - 1], kind="stable")]
    numbers = np.zeros(count + 1, found.dtype)
    numbers[kept] = np.arange(1, len(kept) + 1)
    labels = numbers[found]
    if not len(kept):
        return StormCells(np.zeros((0, 2)), np.zeros(0), np.zeros(0), labels)
    index = np.arange(1, len(kept) + 1)
    centres = np.asarray(ndimage.center_of_mass(labels > 0, labels, index)) * options.spacing
    return StormCells(centres, areas[kept - 1], np.asarray(ndimage.maximum(field, labels, index)), labels)


def match(first: np.ndarray, second: np.ndarray, within: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of pairs among centres (n, 2) and (m, 2), none farther apart than `within`."""
    distances = np.linalg.norm(first[:, None] - second[None], axis=-1)
    rows, columns = linear_sum_assignment(np.where(distances <= within, distances, FAR))
    near = distances[rows, columns] <= within
    return rows[near], columns[near]


def storm_sums(
    forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray, options: StormCellOptions
) -> dict[str, np.ndarray]:
    """Return the sums of each frame, (frame, 1), of fields (frame, y, x): counts, and what hits have in common.

    Distances are in km, areas in km2. Grid cells that are not `valid` belong to none. Every storm cell counts once,
    whatever its area.
    """
    sums = np.zeros((len(forecast), len(SUMS)))
    for frame, (made, seen, known) in enumerate(zip(forecast, observed, valid, strict=True)):
        a, b = (find(np.where(known, field, np.nan), options) for field in (made, seen))
        i, j = match(a.centres, b.centres, options.within_km)
        apart = np.linalg.norm(a.centres[i] - b.centres[j], axis=-1).sum()
        pairs = (a.areas[i].sum(), b.areas[j].sum(), a.peaks[i].sum(), b.peaks[j].sum())
        sums[frame] = (len(i), len(b) - len(j), len(a) - len(i), apart, *pairs)
    return {name: sums[:, [k]] for k, name in enumerate(SUMS)}


def storm_csi(sums: xr.Dataset) -> xr.DataArray:
    """Return the critical success index of storm cells, hits / (hits + misses + false alarms): 0 to 1, 1 is perfect.

    Counts are pooled over init times first. NaN where no storm cell was forecast or observed.
    """
    hits, misses, false_alarms = (sums[name].sum(INIT_TIME) for name in COUNTS)
    return ratio(hits, hits + misses + false_alarms)


def storm_pod(sums: xr.Dataset) -> xr.DataArray:
    """Return the share of observed storm cells that were forecast, hits / (hits + misses): 0 to 1, 1 is perfect."""
    hits, misses = (sums[name].sum(INIT_TIME) for name in COUNTS[:2])
    return ratio(hits, hits + misses)


def storm_far(sums: xr.Dataset) -> xr.DataArray:
    """Return the share of forecast storm cells that were not observed: 0 to 1, 0 is perfect."""
    hits, false_alarms = (sums[name].sum(INIT_TIME) for name in COUNTS[::2])
    return ratio(false_alarms, hits + false_alarms)


def storm_distance_km(sums: xr.Dataset) -> xr.DataArray:
    """Return the mean distance in km between the centres of a storm cell forecast and observed; NaN without hits."""
    return ratio(sums[DISTANCE].sum(INIT_TIME), sums[COUNTS[0]].sum(INIT_TIME))


def storm_area_ratio(sums: xr.Dataset) -> xr.DataArray:
    """Return the areas of matched storm cells, forecast over observed: 1 is perfect; NaN without hits."""
    made, seen = (sums[name].sum(INIT_TIME) for name in AREAS)
    return ratio(made, seen)


def storm_peak_ratio(sums: xr.Dataset) -> xr.DataArray:
    """Return the highest values of matched storm cells, forecast over observed: 1 is perfect; NaN without hits."""
    made, seen = (sums[name].sum(INIT_TIME) for name in PEAKS)
    return ratio(made, seen)
