"""Scores of distributions: members are equally likely values, of an ensemble or quantiles at levels (i − ½) / M.

Sums are made of the valid cells alone, each with its M members in ascending order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.verification.ratios import weighted_mean

LEVEL = 0.9  # of the central interval whose coverage is scored
BINS = 10  # of forecast probability in the reliability diagram
RELIABILITY = ("reliability_weight", "reliability_probability", "reliability_events")
CLASS_SUMS = ("forecast_class_weight", "forecast_class_covered")


@dataclass(frozen=True)
class Cells:
    """The valid cells of some frames, one after the other."""

    frames: int
    frame: np.ndarray  # (cell,) number of the frame that a cell belongs to
    weight: np.ndarray  # (cell,)
    observed: np.ndarray  # (cell,)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Return the weighted sum `(frame,)` of `values` `(cell,)`."""
        return np.bincount(self.frame, values * self.weight, minlength=self.frames)

    def totals(self, values: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
        """Return the weighted sum `(frame, group)` of `values` `(cell,)` by the number of each cell's group."""
        sums = np.bincount(self.frame * groups + group, values * self.weight, minlength=self.frames * groups)
        return sums.reshape(self.frames, groups)


def cells_of(observed: np.ndarray, valid: np.ndarray, rows: np.ndarray | None = None) -> Cells:
    """Return the valid cells of `observed` `(frame, y, x)` with the weights of their rows."""
    frame, row, _ = np.nonzero(valid)
    weight = np.ones(len(row)) if rows is None else rows[row]
    return Cells(len(valid), frame, weight, observed[valid])


def member_sums(
    members: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    thresholds: Sequence[float],
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the sums of each frame that need members `(frame, member, y, x)`, M of them and at least two.

    `observed` and `valid` are `(frame, y, x)`. `crps`, `expected_squared_error` (the unbiased variance of members times
    (M + 1) / M) and `interval_covered` are `(frame,)`, `brier` `(frame, threshold)`, the reliability sums
    `(frame, threshold, bin)`, `rank_histogram` `(frame, M + 1)` `class_crps` `(frame, class)` by class of the observed
    value and coverage `(frame, class)` by that of the ensemble mean, classes lying between thresholds.
    """
    cells = cells_of(observed, valid, rows)
    ordered = np.sort(np.moveaxis(members, 1, -1)[valid], axis=-1).T  # (member, cell)
    exact = ordered.astype(np.float64)
    count = len(exact)
    inside, error = _inside(exact, cells.observed), crps_of_sorted(exact, cells.observed)
    sums = {
        "crps": cells.total(error),
        "expected_squared_error": cells.total(exact.var(axis=0, ddof=1) * (count + 1) / count),
        "interval_covered": cells.total(inside),
        "rank_histogram": _ranks(ordered, cells),
    }
    if thresholds:
        sums |= _event_sums(ordered, cells, thresholds)
        classes = len(thresholds) + 1
        sums["class_crps"] = cells.totals(error, class_of(cells.observed, thresholds), classes)
        of_mean = class_of(exact.mean(axis=0).astype(members.dtype), thresholds)
        covered = (cells.totals(values, of_mean, classes) for values in (np.ones(inside.shape), inside))
        sums |= dict(zip(CLASS_SUMS, covered, strict=True))
    return sums


def crps_of_sorted(members: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return the CRPS `(cell,)` of the step function through ascending `members` `(member, cell)`; 0 is perfect.

    Mean |x_i − o| − Σ_ij |x_i − x_j| / 2 M², the second sum by the members' order. Hersbach (2000), Wea. Forecasting
    15; Gneiting & Raftery (2007), J. Amer. Stat. Assoc. 102, eq. 21.
    """
    count = len(members)
    order = (2 * np.arange(1, count + 1) - count - 1) / count**2
    return np.asarray(np.abs(members - observed).mean(axis=0) - order @ members)


def exceedance(members: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return the share of members `(…, member, y, x)` at or above each threshold, `(…, threshold, y, x)`, 0 to 1.

    NaN where a member is missing.
    """
    shares = np.stack([(members >= threshold).mean(axis=-3) for threshold in thresholds], axis=-3)
    return np.where(np.isnan(members).any(axis=-3, keepdims=True), np.nan, shares)


def interval(members: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends `(…, y, x)` of the central interval of probability `level` of members `(…, member, y, x)`.

    Sorted members are quantiles at levels (i − ½) / M, linear in between and constant beyond the first and the last
    (Hazen's plotting positions). NaN where a member is missing.
    """
    ordered = np.moveaxis(np.sort(members, axis=-3), -3, 0)
    missing = np.isnan(ordered[-1])  # NaN sorts last
    low, high = (np.where(missing, np.nan, quantile(ordered, (1 + side * level) / 2)) for side in (-1, 1))
    return low, high


def quantile(ordered: np.ndarray, level: float) -> np.ndarray:
    """Return the quantile at `level` of values that ascend along the first dimension, by Hazen's positions."""
    position = min(max(round(level * len(ordered) - 0.5, 9), 0.0), len(ordered) - 1.0)  # rounded: 9 is not 8.999…
    below = int(position)
    part = position - below
    if part == 0:
        return np.asarray(ordered[below])
    return np.asarray(ordered[below] + part * (ordered[below + 1] - ordered[below]))


def class_of(values: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return the number of thresholds that each value reaches: 0 below the first, then one class a threshold."""
    return np.searchsorted(np.asarray(thresholds, values.dtype), values, side="right")


def crps(sums: xr.Dataset) -> xr.DataArray:
    """Return the continuous ranked probability score in the field's units; 0 is perfect.

    For one forecast it is the MAE. Pooled over all valid cells of all init times; NaN where no cell is valid. See
    `crps_of_sorted`.
    """
    return weighted_mean(sums, "crps")


def brier(sums: xr.Dataset) -> xr.DataArray:
    """Return the Brier score, the mean of (p − o)² with o 1 in an event, else 0: 0 to 1, 0 is perfect.

    p is the share of members in the event, for one forecast 0 or 1. Pooled over all valid cells of all init times; NaN
    where no cell is valid. Brier (1950), Mon. Wea. Rev. 78.
    """
    return weighted_mean(sums, "brier")


def spread_skill(sums: xr.Dataset) -> xr.DataArray:
    """Return spread over RMSE of the ensemble mean: 1 is reliable, below 1 the members are too alike.

    The spread is sqrt(mean unbiased variance x (M + 1) / M), which makes 1 the value of observations that could be one
    more member. Both means are pooled before the root. NaN where the error is 0. Fortin et al. (2014), J.
    Hydrometeor. 15.
    """
    spread, error = (sums[name].sum(INIT_TIME) for name in ("expected_squared_error", "squared_error"))
    return (spread / error.where(error > 0)) ** 0.5


def coverage_90(sums: xr.Dataset) -> xr.DataArray:
    """Return the share of observations inside the central 90 % interval, borders included: 0.9 is reliable.

    Pooled over all valid cells of all init times; NaN where no cell is valid. See `interval`.
    """
    return weighted_mean(sums, "interval_covered")


def _event_sums(ordered: np.ndarray, cells: Cells, thresholds: Sequence[float]) -> dict[str, np.ndarray]:
    """Return `brier` `(frame, threshold)` and the reliability sums `(frame, threshold, bin)`."""
    brier, reliability = [], []
    for threshold in thresholds:
        votes = (ordered >= threshold).sum(axis=0)
        probability, event = votes / len(ordered), (cells.observed >= threshold).astype(np.float64)
        brier.append(cells.total((probability - event) ** 2))
        bins = np.minimum(votes * BINS // len(ordered), BINS - 1)
        kept = (np.ones(event.shape), probability, event)
        reliability.append([cells.totals(values, bins, BINS) for values in kept])
    stacked = np.asarray(reliability).transpose(1, 2, 0, 3)  # (sum, frame, threshold, bin)
    return {"brier": np.stack(brier, axis=1)} | dict(zip(RELIABILITY, stacked, strict=True))


def _inside(members: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return 1.0 for each cell whose observation is in the central interval of ascending members, else 0.0."""
    low, high = quantile(members, (1 - LEVEL) / 2), quantile(members, (1 + LEVEL) / 2)
    return ((observed >= low) & (observed <= high)).astype(np.float64)


def _ranks(ordered: np.ndarray, cells: Cells) -> np.ndarray:
    """Return how often `(frame, rank)` the observation has each rank among the members, ties shared out evenly."""
    ranks = len(ordered) + 1
    below = (ordered < cells.observed).sum(axis=0)
    equal = (ordered == cells.observed).sum(axis=0)
    share = 1.0 / (equal + 1)  # on each of the ranks from `below` to `below + equal`
    edges = cells.totals(share, below, ranks + 1) - cells.totals(share, below + equal + 1, ranks + 1)
    return np.asarray(edges.cumsum(axis=1)[:, :ranks])


def votes_at(levels: np.ndarray, votes: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the votes (lead, threshold), at least 1, of one field's `votes` (lead, level), linear between levels."""
    found = np.array([np.interp(thresholds, levels, of_lead) for of_lead in votes])
    whole: np.ndarray = np.maximum(np.rint(found), 1).astype(np.intp)
    return whole


def voted(ranked: np.ndarray, votes: np.ndarray) -> np.ndarray:
    """Return fields (frame, y, x) that reach what at least `votes` (frame,) of the members do.

    `ranked` are the members (frame, member, y, x) in ascending order: with v votes it is the v-th largest.
    """
    field: np.ndarray = ranked[np.arange(len(ranked)), ranked.shape[1] - votes]
    return field
