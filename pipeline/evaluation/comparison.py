"""A comparison of models in one variable: scores, certainty of differences, models left out, verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import xarray as xr

from fieldcast import models
from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.datasets.finite import OUTLIERS
from fieldcast.pipeline.datasets.labels import lead_unit, readable, readable_units
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, RAIN_RATE_UNITS, lead_minutes
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation import verdict
from fieldcast.pipeline.evaluation.comparability import incomparable, learnt_on
from fieldcast.pipeline.evaluation.mirror import MirrorTest, mirror_fact, mirror_sentences, mirror_test
from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.verification.aggregation import (
    SCALE,
    THRESHOLD,
    field_scores,
    field_sums,
    fields_of,
    of_field,
    scores_of,
    units_of,
)
from fieldcast.pipeline.verification.continuous import mse_skill
from fieldcast.pipeline.verification.scores import TABLE, Score, Scores, by_key
from fieldcast.pipeline.verification.significance import Evidence, evidence

DIGITS = 6  # significant digits in files; ties are ties at this precision
CASES = 2

Metrics = dict[str, Scores]


@dataclass(frozen=True)
class Entry:
    """One model of a comparison: its sums, its kind, its costs, and the address of its run."""

    sums: xr.Dataset
    kind: str
    costs: Costs = field(default_factory=Costs)
    run: str = ""  # an address, where the tracker knows one
    recipe: str = ""  # what it is made by but for its seed: models with the same are trainings of one; "": not known


@dataclass(frozen=True)
class Comparison:
    """Scores of all models in one variable; differences of those that are comparable."""

    entries: Mapping[str, Entry]
    left_out: Mapping[str, Sequence[str]]  # model -> reasons why it is not comparable with the others
    metrics: Metrics
    leading: Sequence[Score]  # that every summary begins with
    evidence: Evidence
    verdict: Sequence[str]
    mirror: Mapping[str, MirrorTest] = field(default_factory=dict)  # of the models that are tested with flipped fields

    @property
    def variable(self) -> str:
        """Return the name of the variable."""
        return only_field(self.sums)

    @property
    def units(self) -> str:
        """Return the units of the variable."""
        return units_of(self.sums, self.variable)

    @property
    def references(self) -> list[str]:
        """Return the names of the models that learn nothing."""
        return references_of(self.entries)

    @property
    def rivals(self) -> list[str]:
        """Return the references that are comparable with the other models."""
        return [name for name in self.references if name not in self.left_out]

    @property
    def comparable(self) -> dict[str, xr.Dataset]:
        """Return the sums of the models that are comparable with one another."""
        return {name: entry.sums for name, entry in self.entries.items() if name not in self.left_out}

    @property
    def sums(self) -> xr.Dataset:
        """Return the sums of one of these models, for what all of them share."""
        return next(iter(self.comparable.values()))


def compare_all(entries: Mapping[str, Entry], options: Compare) -> dict[str, Comparison]:
    """Return a comparison of all `entries` for each variable, in the order of the forecasts.

    Raises `InputError` where there is nothing to compare.
    """
    if not entries:
        raise InputError("data/scores: no model to compare, expected the names in models")
    fields = dict.fromkeys(field for entry in entries.values() for field in fields_of(entry.sums))
    return {
        field: compare(
            {
                name: replace(entry, sums=of_field(entry.sums, field))
                for name, entry in entries.items()
                if field in fields_of(entry.sums)
            },
            options,
        )
        for field in fields
    }


def compare(entries: Mapping[str, Entry], options: Compare) -> Comparison:
    """Return the comparison of `entries` of one variable; models that are not comparable are part of no verdict."""
    sums = {name: entry.sums for name, entry in entries.items()}
    learned = {name: entry.costs.budget for name, entry in entries.items() if entry.kind not in models.REFERENCES}
    left_out = incomparable(sums, {name: learned.get(name) for name in entries})
    comparable = {name: own for name, own in sums.items() if name not in left_out}
    metrics = {name: _rounded(scores_of(own)) for name, own in sums.items()}
    first = next(iter(comparable.values()))
    leading, tested = leading_scores(first), tested_scores(first)
    differences = evidence(comparable, tested, options, trainings(entries))
    references = references_of(entries)
    certain = [score for score in leading if score in tested]
    mirrored = {name: test for name, own in sums.items() if (test := mirror_test(own, options)) is not None}
    sentences = verdict.verdict(
        differences, metrics, certain, references, left_out, learnt_on(comparable), mirror_sentences(mirrored)
    )
    return Comparison(entries, left_out, metrics, leading, differences, sentences, mirrored)


def references_of(entries: Mapping[str, Entry]) -> list[str]:
    """Return the names of the models that learn nothing."""
    return [name for name, entry in entries.items() if entry.kind in models.REFERENCES]


def joined_metrics(comparisons: Mapping[str, Comparison]) -> Metrics:
    """Return the scores of all variables by model; with more than one variable each score names its own."""
    joined: Metrics = {}
    for variable, comparison in comparisons.items():
        name = variable if len(comparisons) > 1 else ""
        for model, scores in comparison.metrics.items():
            named = {score._replace(field=name): by_lead for score, by_lead in scores.items()}
            joined.setdefault(model, {}).update(named)
    return joined


def trainings(entries: Mapping[str, Entry]) -> list[list[str]]:
    """Return the names of models that are trainings of one, two or more each."""
    groups: dict[str, list[str]] = {}
    for name, entry in entries.items():
        if entry.recipe:
            groups.setdefault(entry.recipe, []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def write_scores(metrics: Metrics, path: Path) -> None:
    """Write scores as JSON, `{model: {score: {lead: value}}}`.

    Leads are text in ascending order, all else is sorted, and NaN (nothing to score) is null.

    Raise `InputError` for a score that is infinite.
    """
    for model, scores in metrics.items():
        for key, by_lead in by_key(scores).items():
            for lead, value in by_lead.items():
                if math.isinf(value):
                    raise InputError(
                        f"{path}: {key} of {model} at {lead} minutes is {value}: nothing is written; {OUTLIERS}"
                    )
    content = {
        model: {
            key: {str(lead): None if math.isnan(by_lead[lead]) else by_lead[lead] for lead in sorted(by_lead)}
            for key, by_lead in sorted(by_key(scores).items())
        }
        for model, scores in sorted(metrics.items())
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def leading_scores(sums: xr.Dataset) -> list[Score]:
    """Return the scores that every summary begins with.

    RMSE; the middle and the highest threshold's CSI (MAE without thresholds); the spectrum ratio, since a blurred
    forecast has a low RMSE; the middle FSS; CRPS.
    """
    field = only_field(sums)
    own, units = field_sums(sums, field), units_of(sums, field)
    scores = [Score("rmse")]
    if THRESHOLD in own.coords:
        thresholds = own[THRESHOLD].values
        levels = dict.fromkeys((middle(thresholds), float(thresholds[-1])))
        scores += [Score("csi", threshold, None, units) for threshold in levels]
    else:
        scores.append(Score("mae"))
    scores.append(Score("spectrum_ratio"))
    if SCALE in own.coords:
        scores.append(Score("fss", middle(own[THRESHOLD].values), middle(own[SCALE].values), units))
    return [*scores, Score("crps")]


def tested_scores(sums: xr.Dataset) -> list[Score]:
    """Return the scores that have intervals and differences; of neighbourhoods the middle one."""
    field = only_field(sums)
    own = field_sums(sums, field)
    scale = middle(own[SCALE].values) if SCALE in own.coords else None
    return [
        score
        for score in field_scores(own, units_of(sums, field))
        if TABLE[score.name].tested and score.scale_km in (None, scale)
    ]


def only_field(sums: xr.Dataset) -> str:
    """Return the name of the only field of sums."""
    (field,) = fields_of(sums)
    return field


def skill(comparison: Comparison, model: str, rmse: Score) -> dict[float, float]:
    """Return `model`'s MSE skill at each lead against the best reference there; NaN where there is none.

    A reference that was scored on other cells is none.
    """
    against = [comparison.metrics[name][rmse] for name in comparison.rivals]
    values = {}
    for lead, own in comparison.metrics[model][rmse].items():
        best = min((by[lead] for by in against if not math.isnan(by.get(lead, math.nan))), default=math.nan)
        values[lead] = float(mse_skill(np.asarray(own**2), np.asarray(best**2)))
    return values


def eventful(sums: xr.Dataset, count: int = CASES) -> list[np.datetime64]:
    """Return the init times with most observed events, at least a horizon apart, the most eventful first.

    For rain the measure is the observed share of cells at or above the lowest threshold, else (or without a threshold)
    the observed variance over cells and leads. Forecasts play no part.
    """
    activity = activity_of(sums)
    order = activity[INIT_TIME].values[np.argsort(-activity.fillna(-np.inf).values, kind="stable")]
    horizon = sums[LEAD_TIME].values.max()
    chosen: list[np.datetime64] = []
    for init in order:
        if len(chosen) < count and all(abs(init - other) >= horizon for other in chosen):
            chosen.append(init)
    return chosen


def activity_of(sums: xr.Dataset) -> xr.DataArray:
    """Return the observed activity at each init time (see `eventful`); NaN where nothing was observed."""
    field = only_field(sums)
    own = field_sums(sums, field)
    weight = own["weight"].sum(LEAD_TIME)
    weight = weight.where(weight > 0)
    if THRESHOLD in own.coords and units_of(sums, field) == RAIN_RATE_UNITS:
        return (own["hits"] + own["misses"]).isel({THRESHOLD: 0}).sum(LEAD_TIME) / weight
    return own["observed_squared"].sum(LEAD_TIME) / weight - (own["observed"].sum(LEAD_TIME) / weight) ** 2


def extremes(comparison: Comparison) -> dict[str, np.datetime64]:
    """Return the init times with the best and the worst forecast of the model with the lowest RMSE, with captions.

    A forecast's measure is its MSE skill over all leads against the best of the other models at that init time; only
    the more eventful half of the init times counts, since errors are small where nothing happens.
    """
    comparable = comparison.comparable
    errors = {name: own[f"{comparison.variable}.squared_error"].sum(LEAD_TIME) for name, own in comparable.items()}
    leader = min(errors, key=lambda name: float(errors[name].sum()))
    others = [own.values for name, own in errors.items() if name != leader]
    activity = activity_of(comparison.sums).values
    if not others or not np.isfinite(activity).any():
        return {}
    values = mse_skill(errors[leader].values, np.min(others, axis=0))
    values = np.where(activity >= np.nanmedian(activity), values, np.nan)
    if not np.isfinite(values).any():
        return {}
    inits = comparison.sums[INIT_TIME].values
    ends = {"Best": int(np.nanargmax(values)), "Worst": int(np.nanargmin(values))}
    return {
        f"{rank} case of {readable(leader)}, against the best other model: MSE skill {values[at]:+.2f}": inits[at]
        for rank, at in ends.items()
    }


def facts(comparison: Comparison) -> dict[str, str]:
    """Return the extent of the comparison, as label and text: init times, period, lead times, cells."""
    sums = comparison.sums
    inits, leads = sums[INIT_TIME].values, lead_minutes(sums)
    divisor, unit = lead_unit(leads)
    n = sums[f"{comparison.variable}.n"]
    return {
        "Field": f"{readable(comparison.variable)}, {readable_units(comparison.units)}",
        "Init times": f"{inits.size}, from {minute(inits.min())} to {minute(inits.max())} UTC",
        "Lead times": f"{len(leads)}, from {leads[0] / divisor:g} to {leads[-1] / divisor:g} {unit}",
        "Valid cells": f"{int(n.sum()):,} in all, {float(n.mean()):,.0f} a frame; the same for every model",
        **({"Fields flipped from left to right": mirror_fact(comparison.mirror)} if comparison.mirror else {}),
    }


def middle(values: np.ndarray) -> float:
    """Return the middle one of ascending values, of two the lower."""
    return float(values[(len(values) - 1) // 2])


def minute(time: np.datetime64) -> str:
    """Return a time to the minute, with a space before the hour."""
    return str(time.astype("datetime64[m]")).replace("T", " ")


def _rounded(scores: Scores) -> Scores:
    return {
        name: {lead: float(f"{value:.{DIGITS}g}") for lead, value in by_lead.items()}
        for name, by_lead in scores.items()
    }
