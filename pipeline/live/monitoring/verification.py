"""Verification of issued forecasts: each published forecast against the observations, once.

Sums, not scores, are kept, so that any span of cycles has the scores that the stage `verify` would give it: both come
from the functions of `pipeline.verification`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from fieldcast.models.layers.latest import latest_valid
from fieldcast.pipeline.datasets.grid import row_weights
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, lead_minutes
from fieldcast.pipeline.live.archive.ledger import Verification
from fieldcast.pipeline.verification import categorical, continuous, probabilistic
from fieldcast.pipeline.verification.aggregation import THRESHOLD

DISTRIBUTION = ("crps", "interval_covered")  # sums of forecasts with members, beside `member_weight` and `brier`
Sums = dict[str, Any]  # field -> {"lead_minutes": [...], "forecast": {sum: [...]}, "persistence": {sum: [...]}}
ERROR_SUMS = ("weight", "error", "squared_error")  # that the scores here are made of


def sums_of(
    forecast: xr.Dataset,
    observed: np.ndarray,
    history: np.ndarray,
    names: Sequence[str],
    thresholds: Mapping[str, Sequence[float]],
    members: xr.Dataset | None = None,
) -> Sums:
    """Return the sums of errors of one forecast and of persistence, by field and lead.

    `forecast` holds the fields `names` (1, lead, y, x), and `members`, where they were published, (1, lead, member, y,
    x); `observed` (lead, c, y, x) and `history` (t, c, y, x) hold the same fields in order, NaN where missing. Cells
    count where forecast, observation and persistence are finite.
    """
    latest = latest_valid(history[None])[0]
    rows = row_weights(forecast)
    result: Sums = {}
    for i, name in enumerate(names):
        fields = forecast[name].values[0]
        persistence = np.broadcast_to(latest[i], fields.shape)
        valid = np.isfinite(observed[:, i]) & np.isfinite(fields) & np.isfinite(persistence)
        levels = [float(level) for level in thresholds.get(name, ())]
        of_members = {}
        if members is not None and name in members:
            of_members = _member_sums(members[name].values[0], observed[:, i], valid, levels, rows)
        result[name] = {
            "units": str(forecast[name].attrs.get("units", "")),
            "lead_minutes": lead_minutes(forecast),
            "thresholds": levels,
            "forecast": _sums(fields, observed[:, i], valid, levels, rows) | of_members,
            "persistence": _sums(persistence, observed[:, i], valid, levels, rows),
        }
    return result


@dataclass(frozen=True)
class Scores:
    """Scores of some verified cycles, pooled, by lead."""

    field: str
    units: str
    cycles: int
    lead_minutes: list[float]
    rmse: list[float]
    persistence_rmse: list[float]
    mean_error: list[float]
    thresholds: list[float]
    csi: list[list[float]]  # by lead, then threshold
    crps: list[float]  # of the cycles whose members were published; empty without any, as the next two are
    brier: list[list[float]]  # of these too, by lead, then threshold
    coverage: list[float]  # of the central 90 % interval
    reliability: dict[str, list[list[float]]]  # by sum, threshold, then bin of probability, over all leads

    @property
    def has_members(self) -> bool:
        """Return whether members of a cycle were published and scored."""
        return bool(self.crps)

    @property
    def overall(self) -> dict[str, float]:
        """Return RMSE, that of persistence, their ratio, and the mean error, over all leads alike."""
        rmse, persistence = (
            math.sqrt(_mean([value * value for value in side])) for side in (self.rmse, self.persistence_rmse)
        )
        ratio = rmse / persistence if persistence > 0 else math.nan
        of_members = {"crps": _mean(self.crps), "coverage_90": _mean(self.coverage)} if self.has_members else {}
        return {
            "rmse": rmse,
            "persistence_rmse": persistence,
            "rmse_ratio": ratio,
            "mean_error": _mean(self.mean_error),
            **of_members,
        }


def scores_of(verified: Sequence[Verification]) -> list[Scores]:
    """Return the pooled scores of the fields of some cycles; leads that only some of them have count for those.

    Cycles whose field was in other units than in the last one are left out, and so are the events of cycles that were
    scored with other thresholds.
    """
    fields = sorted({name for cycle in verified for name in cycle.sums})
    return [_field_scores(name, [cycle.sums[name] for cycle in verified if name in cycle.sums]) for name in fields]


def _sums(
    forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray, thresholds: Sequence[float], rows: np.ndarray | None
) -> dict[str, list[Any]]:
    sums = continuous.error_sums(forecast, observed, valid, rows) | continuous.weight_sums(valid, rows)
    sums |= categorical.contingency_sums(forecast, observed, valid, thresholds, rows)
    return {name: values.tolist() for name, values in sums.items()}


def _member_sums(
    members: np.ndarray, observed: np.ndarray, valid: np.ndarray, thresholds: Sequence[float], rows: np.ndarray | None
) -> dict[str, list[Any]]:
    """Return the sums of members (lead, member, y, x), and the weight of the cells that they count."""
    sums = probabilistic.member_sums(members, observed, valid, thresholds, rows)
    kept = {name: sums[name] for name in (*DISTRIBUTION, "brier") if name in sums}
    kept["member_weight"] = continuous.weight_sums(valid, rows)["weight"]
    kept |= {name: sums[name].sum(axis=0) for name in probabilistic.RELIABILITY if name in sums}  # over all leads
    return {name: values.tolist() for name, values in kept.items()}


def _field_scores(name: str, parts: Sequence[Mapping[str, Any]]) -> Scores:
    units, thresholds = parts[-1]["units"], parts[-1]["thresholds"]
    parts = [part for part in parts if part["units"] == units]
    leads = sorted({lead for part in parts for lead in part["lead_minutes"]})
    forecast, persistence = (_labelled(parts, side, leads, thresholds) for side in ("forecast", "persistence"))
    distribution = forecast.assign(weight=forecast["member_weight"])
    has_members = bool((distribution["weight"] > 0).any())
    return Scores(
        field=name,
        units=units,
        cycles=len(parts),
        lead_minutes=leads,
        rmse=continuous.rmse(forecast).values.tolist(),
        persistence_rmse=continuous.rmse(persistence).values.tolist(),
        mean_error=continuous.mean_error(forecast).values.tolist(),
        thresholds=thresholds,
        csi=categorical.csi(forecast).values.tolist(),
        crps=probabilistic.crps(distribution).values.tolist() if has_members else [],
        brier=probabilistic.brier(distribution).values.tolist() if has_members else [],
        coverage=probabilistic.coverage_90(distribution).values.tolist() if has_members else [],
        reliability=_reliability(parts, thresholds),
    )


def _reliability(parts: Sequence[Mapping[str, Any]], thresholds: Sequence[float]) -> dict[str, list[list[float]]]:
    """Return the pooled sums of the cycles that have some, and were scored with these thresholds; empty without any."""
    having = [part["forecast"] for part in parts if part["thresholds"] == thresholds]
    having = [sums for sums in having if probabilistic.RELIABILITY[0] in sums]
    if not having:
        return {}
    return {name: np.sum([sums[name] for sums in having], axis=0).tolist() for name in probabilistic.RELIABILITY}


def _labelled(
    parts: Sequence[Mapping[str, Any]], side: str, leads: Sequence[int], thresholds: Sequence[float]
) -> xr.Dataset:
    """Return kept sums as the scores expect them, (init_time, lead_time[, threshold]), 0 for leads not forecast."""
    shape = (len(parts), len(leads))
    errors = {name: np.zeros(shape) for name in ERROR_SUMS}
    of_members = {name: np.zeros(shape) for name in (*DISTRIBUTION, "member_weight")}
    events = {name: np.zeros((*shape, len(thresholds))) for name in (*categorical.SUMS[:3], "brier")}
    for i, part in enumerate(parts):
        columns, sums = np.searchsorted(leads, part["lead_minutes"]), part[side]
        for name in errors:
            errors[name][i, columns] = sums.get(name, sums["n"])  # earlier versions kept no weights: all cells alike
        for name in of_members:
            of_members[name][i, columns] = sums.get(name, 0.0)
        for name in events if part["thresholds"] == thresholds else ():
            events[name][i, columns] = sums.get(name, 0.0)
    dims = (INIT_TIME, LEAD_TIME)
    labelled = {name: (dims, values) for name, values in (errors | of_members).items()}
    return xr.Dataset(labelled | {name: ((*dims, THRESHOLD), values) for name, values in events.items()})


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(_mean([value * value for value in values]))


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if math.isfinite(value)]
    return sum(defined) / len(defined) if defined else math.nan
