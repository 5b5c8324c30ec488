"""The best reference at each lead: what a model has to beat, climatology included.

Which reference is best depends on the lead: a model is compared with another one at short leads than at long ones. The
best is the one with the best value of the score in question, over the same init times and cells.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import xarray as xr

from fieldcast.pipeline.datasets.schema import LEAD_TIME, lead_minutes
from fieldcast.pipeline.verification.scores import Score, badness
from fieldcast.pipeline.verification.significance import Evidence

NAME = "the best reference at each lead"  # of `joined` sums


def best_of(evidence: Evidence, models: Sequence[str], score: Score, lead: float) -> str | None:
    """Return the one of `models` with the best value of `score` at `lead` (minutes), the first on a tie.

    None where the score is undefined for all of them.
    """
    ranks = {model: badness(score, evidence.intervals[model, score][lead].value) for model in models}
    best = min(ranks, key=lambda model: ranks[model], default=None)
    return best if best is not None and math.isfinite(ranks[best]) else None


def joined(sums: Mapping[str, xr.Dataset], names: Sequence[str]) -> xr.Dataset:
    """Return the sums of one forecast that is another model's at each lead: `names` are those of the leads, in order.

    Kept are the sums that these models share: only some of them have members.
    """
    shapes = [{name: values.sizes for name, values in sums[model].data_vars.items()} for model in dict.fromkeys(names)]
    shared = [name for name, sizes in shapes[0].items() if all(other.get(name) == sizes for other in shapes)]
    parts = [sums[model][shared].isel({LEAD_TIME: [k]}) for k, model in enumerate(names)]
    whole: xr.Dataset = xr.concat(
        parts, LEAD_TIME, data_vars="minimal", coords="minimal", compat="override", combine_attrs="override"
    )
    return whole


def best_joined(
    sums: Mapping[str, xr.Dataset], references: Sequence[str], evidence: Evidence, score: Score, leads: Sequence[float]
) -> tuple[str, xr.Dataset]:
    """Return what is best at each lead as the sums of one forecast, and its name.

    The name is that of the reference where one is the best at all of `leads` (minutes), else `NAME`.
    """
    best = {
        lead: best_of(evidence, references, score, lead) or references[0] for lead in lead_minutes(sums[references[0]])
    }
    named = list(dict.fromkeys(best[lead] for lead in leads))
    return (named[0], sums[named[0]]) if len(named) == 1 else (NAME, joined(sums, list(best.values())))
