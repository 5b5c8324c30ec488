"""Verification of what was issued: each published forecast against what was observed later, once; and drift.

Sums, not scores, are kept, so that any span of cycles gives the scores that the pipeline's verification would give.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import xarray as xr

from fieldcast.models.layers.latest import latest_valid
from fieldcast.pipeline.config import Drift
from fieldcast.pipeline.datasets.schema import lead_minutes
from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.live.archive.ledger import Cycle, Verification
from fieldcast.pipeline.verification.categorical import SUMS as EVENT_SUMS
from fieldcast.pipeline.verification.categorical import contingency_sums
from fieldcast.pipeline.verification.continuous import error_sums

Sums = dict[str, Any]  # field -> {"lead_minutes": [...], "forecast": {sum: [...]}, "persistence": {sum: [...]}}


def sums_of(
    forecast: xr.Dataset,
    observed: np.ndarray,
    history: np.ndarray,
    names: Sequence[str],
    thresholds: Mapping[str, Sequence[float]],
) -> Sums:
    """Return the sums of errors of one forecast and of persistence, by field and lead.

    `forecast` holds the fields `names` (1, lead, y, x); `observed` (lead, c, y, x) and `history` (t, c, y, x) hold the
    same fields in order, NaN where missing. Cells count where forecast, observation and persistence are finite.
    """
    still = latest_valid(history[None])[0]
    result: Sums = {}
    for i, name in enumerate(names):
        fields = forecast[name].values[0]
        persistence = np.broadcast_to(still[i], fields.shape)
        valid = np.isfinite(observed[:, i]) & np.isfinite(fields) & np.isfinite(persistence)
        result[name] = {
            "units": str(forecast[name].attrs.get("units", "")),
            "lead_minutes": lead_minutes(forecast),
            "thresholds": [float(it) for it in thresholds.get(name, ())],
            "forecast": _sums(fields, observed[:, i], valid, thresholds.get(name, ())),
            "persistence": _sums(persistence, observed[:, i], valid, thresholds.get(name, ())),
        }
    return result


def _sums(
    forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray, thresholds: Sequence[float]
) -> dict[str, list[Any]]:
    sums = error_sums(forecast, observed, valid) | contingency_sums(forecast, observed, valid, thresholds)
    return {name: values.tolist() for name, values in sums.items()}


@dataclass(frozen=True)
class Scores:
    """Scores of some verified cycles, pooled, by lead."""

    field: str
    units: str
    cycles: int
    lead_minutes: list[int]
    rmse: list[float]
    persistence_rmse: list[float]
    mean_error: list[float]
    thresholds: list[float]
    csi: list[list[float]]  # by lead, then threshold

    @property
    def overall(self) -> dict[str, float]:
        """Return RMSE, that of persistence, their ratio, and the mean error, over all leads alike."""
        rmse, still = _root_mean(self.rmse), _root_mean(self.persistence_rmse)
        ratio = rmse / still if still > 0 else math.nan
        known = [it for it in self.mean_error if math.isfinite(it)]
        mean_error = sum(known) / len(known) if known else math.nan
        return {"rmse": rmse, "persistence_rmse": still, "rmse_ratio": ratio, "mean_error": mean_error}


def scores_of(verified: Sequence[Verification]) -> list[Scores]:
    """Return the pooled scores of the fields of some cycles; leads that only some of them have count for those.

    Cycles whose field was in other units than in the last one are left out.
    """
    fields = sorted({name for it in verified for name in it.sums})
    return [_field_scores(name, [it.sums[name] for it in verified if name in it.sums]) for name in fields]


def _field_scores(name: str, parts: Sequence[Mapping[str, Any]]) -> Scores:
    units = parts[-1]["units"]
    parts = [part for part in parts if part["units"] == units]
    thresholds = parts[-1]["thresholds"]
    own, still = (_pooled(parts, which, thresholds) for which in ("forecast", "persistence"))
    leads = sorted(own)
    return Scores(
        field=name,
        units=units,
        cycles=len(parts),
        lead_minutes=leads,
        rmse=[_ratio(own[lead]["squared_error"], own[lead]["n"]) ** 0.5 for lead in leads],
        persistence_rmse=[_ratio(still[lead]["squared_error"], still[lead]["n"]) ** 0.5 for lead in leads],
        mean_error=[_ratio(own[lead]["error"], own[lead]["n"]) for lead in leads],
        thresholds=thresholds,
        csi=[_csi(own[lead], thresholds) for lead in leads],
    )


def _pooled(parts: Sequence[Mapping[str, Any]], which: str, thresholds: Sequence[float]) -> dict[int, dict[str, Any]]:
    """Return the sums of each lead over all parts that have it; event counts of those with these thresholds."""
    alike: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for part in parts:
        alike.setdefault((*part["lead_minutes"], "at", *part["thresholds"]), []).append(part)
    total: dict[int, dict[str, Any]] = {}
    for group in alike.values():
        for name in group[0][which]:
            if name in EVENT_SUMS and group[0]["thresholds"] != list(thresholds):
                continue
            summed = np.asarray([part[which][name] for part in group], np.float64).sum(axis=0)
            for lead, values in zip(group[0]["lead_minutes"], summed, strict=True):
                at = total.setdefault(lead, {})
                at[name] = at.get(name, np.float64(0)) + values
    return total


def _csi(sums: Mapping[str, Any], thresholds: Sequence[float]) -> list[float]:
    if "hits" not in sums:  # this lead was scored with other thresholds alone
        return [math.nan] * len(thresholds)
    events = sums["hits"] + sums["misses"] + sums["false_alarms"]
    return [_ratio(hit, count) for hit, count in zip(sums["hits"], events, strict=True)]


def _ratio(total: float, count: float) -> float:
    return float(total / count) if count > 0 else math.nan


def _root_mean(values: Sequence[float]) -> float:
    known = [it * it for it in values if math.isfinite(it)]
    return math.sqrt(sum(known) / len(known)) if known else math.nan


def alarms(verified: Sequence[Verification], issued: Sequence[Cycle], options: Drift) -> list[str]:
    """Return a line for each sign that forecasts or inputs are not what they were in training.

    `verified` and `issued` are the cycles of the last `live.drift.days`.
    """
    found = []
    if len(verified) >= options.min_cycles:
        first = scores_of(verified)[0]
        overall = first.overall
        if overall["rmse_ratio"] > options.max_rmse_ratio:
            found.append(
                f"RMSE of {first.field} is {overall['rmse_ratio']:.2f} times that of persistence over {first.cycles} "
                f"cycles, allowed {options.max_rmse_ratio:g} (live.drift.max_rmse_ratio)"
            )
        if options.max_mean_error is not None and abs(overall["mean_error"]) > options.max_mean_error:
            found.append(
                f"mean error of {first.field} is {overall['mean_error']:+.3g} {first.units} over {first.cycles} cycles,"
                f" allowed {options.max_mean_error:g} (live.drift.max_mean_error)"
            )
    shares = [cycle.outside_share for cycle in issued]
    if len(shares) >= options.min_cycles and (share := sum(shares) / len(shares)) > options.max_outside_share:
        found.append(
            f"{share:.1%} of the input cells of {len(shares)} cycles lie outside the range of the training data, "
            f"allowed {options.max_outside_share:.1%} (live.drift.max_outside_share)"
        )
    return found


def outside_share(history: np.ndarray, channels: Sequence[Channel]) -> float:
    """Return the share of the valid cells of a history (t, c, y, x) outside the training data's [min, max]."""
    low = np.array([channel.min for channel in channels], np.float32)[:, None, None]
    high = np.array([channel.max for channel in channels], np.float32)[:, None, None]
    valid = np.isfinite(history).sum()
    return float(((history < low) | (history > high)).sum() / valid) if valid else 0.0


def window(now: datetime, options: Drift) -> datetime:
    """Return the first init time that `alarms` looks at."""
    return now - timedelta(days=options.days)
