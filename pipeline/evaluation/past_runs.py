"""Comparisons of runs that MLflow remembers, whichever training they come from."""

from __future__ import annotations

from collections.abc import Sequence

from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.comparison import Comparison, Entry, compare_all
from fieldcast.pipeline.tracking.registry import Registry, ScoredRun

SHORT = 8  # characters of a run's id that tell two runs of one model apart


def compare_runs(wanted: Sequence[str], options: Compare, registry: Registry) -> dict[str, Comparison]:
    """Return the comparison of the runs that `wanted` names, by variable.

    Two runs of one model are distinguished by their ids. Raises `InputError` for fewer than two runs, or for runs that
    learned from other data than the first.
    """
    runs = {run.run_id: run for run in (registry.scored(name) for name in wanted)}
    if len(runs) < 2:
        raise InputError(f"{', '.join(wanted)}: {len(runs)} run, expected two or more different ones")
    first, *others = runs.values()
    for run in others:
        if run.data != first.data:
            raise InputError(
                f"run {run.model} ({run.run_id}) learned from data {run.data or 'unknown'}, {first.model} from "
                f"{first.data or 'unknown'}; expected one data digest: train both on the same prepared data"
            )
    names = _names(list(runs.values()))
    return compare_all(
        {names[run.run_id]: Entry(run.sums, run.kind, run.costs, f"run {run.run_id}") for run in runs.values()}, options
    )


def _names(runs: Sequence[ScoredRun]) -> dict[str, str]:
    models = [run.model for run in runs]
    return {
        run.run_id: run.model if models.count(run.model) == 1 else f"{run.model} {run.run_id[:SHORT]}" for run in runs
    }
