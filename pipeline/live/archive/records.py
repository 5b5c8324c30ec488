"""Records of a cycle for the tracker, kept in the ledger until they have arrived there."""

from __future__ import annotations

from typing import Any

from fieldcast.pipeline.live.archive.ledger import Cycle, Verification
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.monitoring import verification


def cycle_record(cycle: Cycle) -> dict[str, Any]:
    """Return the record of a published cycle."""
    values = {f"cycle/seconds_{name}": value for name, value in cycle.timings.items()}
    values |= {
        "cycle/degraded": float(cycle.quality != "good"),
        "cycle/input_frames_missing": float(cycle.n_input_missing),
        "cycle/input_outside_training_range": cycle.outside_share,
    }
    return _record(cycle, "cycle", values)


def scores_record(cycle: Cycle, verified: Verification) -> dict[str, Any]:
    """Return the record of a verified cycle."""
    values: dict[str, float] = {}
    scores = verification.scores_of([verified])
    for score in scores:
        prefix = f"{score.field}/" if len(scores) > 1 else "scores/"
        values |= {f"{prefix}{name}": value for name, value in score.overall.items()}
        rmse_by_lead = zip(score.lead_minutes, score.rmse, strict=True)
        values |= {f"{prefix}rmse_{lead:04d}_min": rmse for lead, rmse in rmse_by_lead}
    return _record(cycle, "scores", values)


def _record(cycle: Cycle, kind: str, values: dict[str, float]) -> dict[str, Any]:
    moment = cycle.init_time
    return {
        "day": f"{moment:%Y-%m-%d}",
        "model": cycle.model,
        "model_version": cycle.model_version,
        "kind": kind,
        "at": iso(moment),
        "values": {name: value for name, value in values.items() if value == value},
        "step": 60 * moment.hour + moment.minute,
        "tags": {},
    }
