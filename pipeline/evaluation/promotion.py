"""Promotion rule: the best comparable model, if certainly better than the champion and within the guards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import xarray as xr

from fieldcast.pipeline.config import Compare, Guards, Promotion
from fieldcast.pipeline.datasets.labels import lead_unit, readable
from fieldcast.pipeline.datasets.schema import lead_minutes
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.comparability import learnt_on
from fieldcast.pipeline.evaluation.comparison import first_field
from fieldcast.pipeline.verification.aggregation import scores_of
from fieldcast.pipeline.verification.scores import Score, Scores, badness
from fieldcast.pipeline.verification.significance import Difference, evidence, pool_leads

SETTING = "promotion.guards"


@dataclass(frozen=True)
class Decision:
    """The outcome of the rule: the new `champion` is `candidate` when `promote`, else `incumbent`.

    `reason` is a sentence; `differences` are those of each comparable model from the incumbent, pooled over the leads
    (their `lead` is the longest), best model first.
    """

    candidate: str | None
    incumbent: str
    promote: bool
    reason: str
    differences: list[Difference]

    @property
    def champion(self) -> str:
        """Return the model that is champion from now on."""
        return self.candidate if self.promote and self.candidate is not None else self.incumbent


def decide(
    sums: Mapping[str, xr.Dataset],
    promotion: Promotion,
    compare: Compare,
    references: Sequence[str],
    champion: str | None = None,
    excluded: Mapping[str, Sequence[str]] | None = None,
) -> Decision:
    """Return whether the best comparable model replaces the champion, or without one the best reference.

    `sums` are those of all models, `excluded` holds reasons why some are not comparable, `champion` is the current one.
    A model that learnt on while it forecast is no candidate either: no schedule would issue what was scored. The score
    is that of the first field. Raises `InputError` for leads that no forecast has, or when no comparable model is left.
    """
    left_out = {**learnt_on(sums), **(excluded or {})}
    if champion is not None and champion in left_out:
        why = "; ".join(left_out[champion])
        reason = f"not promoted: the champion {readable(champion)} has no comparable scores: {why}"
        return Decision(None, champion, False, reason, [])
    pooled = {model: _pooled(own, promotion) for model, own in sums.items() if model not in left_out}
    if not pooled:
        raise InputError("data/scores: no model was scored on equal terms, see the comparison's list of reasons")
    score = Score(promotion.score, field=first_field(next(iter(pooled.values())))[2])
    pooled_evidence = evidence(pooled, [score], compare)
    values = {model: next(iter(pooled_evidence.intervals[model, score].values())).value for model in pooled}
    ranked = sorted(pooled, key=lambda model: badness(score, values[model]))
    incumbent = (
        champion
        if champion is not None and champion in pooled
        else next((name for name in ranked if name in references), ranked[0])
    )
    others = [model for model in ranked if model != incumbent]
    differences = [
        difference for model in others for difference in pooled_evidence.between(model, incumbent, score).values()
    ]
    if not others:
        return Decision(None, incumbent, False, f"{readable(incumbent)} is the only comparable model", [])
    where = _where(sums[incumbent], promotion)
    faults: list[str] = []
    for difference in differences:
        if difference.word != "better":
            continue
        fault = guard_fault(sums[difference.model], promotion)
        if fault is None:
            reason = f"{_difference_text(difference, values[incumbent], where, compare.confidence)}, guards hold"
            return Decision(difference.model, incumbent, True, "; ".join([reason, *faults]), differences)
        faults.append(f"{readable(difference.model)} is kept out: {fault}")
    first = differences[0]
    unsure = [] if first.word == "better" else [_difference_text(first, values[incumbent], where, compare.confidence)]
    return Decision(first.model, incumbent, False, f"not promoted: {'; '.join([*unsure, *faults])}", differences)


def guard_fault(sums: xr.Dataset, promotion: Promotion) -> str | None:
    """Return the first guard that is broken at one of the leads, as text with the setting's name; None if all hold.

    Leads are checked one by one, so that errors of opposite sign do not cancel. A score that a model does not have,
    such as the coverage of a model without members, breaks no guard.
    """
    scores, field = scores_of(sums), first_field(sums)[2]
    leads = promotion.leads_minutes or lead_minutes(sums)
    guards = promotion.guards
    for name, setting, limit, sign in _limits(guards):
        values = {lead: _guarded(scores, Score(name, field=field), lead) for lead in leads}
        defined = {lead: value for lead, value in values.items() if not math.isnan(value)}
        if limit is None or not defined:
            continue
        worst = max(defined, key=lambda lead: sign * defined[lead])
        if sign * defined[worst] > sign * limit:
            side = "above" if sign > 0 else "below"
            divisor, unit = lead_unit(lead_minutes(sums))
            when = f"at {worst / divisor:g} {unit}"
            return f"{readable(name)} {defined[worst]:.3g} {when} is {side} {limit:g} ({SETTING}.{setting})"
    return None


def _limits(guards: Guards) -> list[tuple[str, str, float | None, int]]:
    """Return score, setting, limit and the forbidden side of the limit (1: above, −1: below)."""
    return [
        ("mean_error", "max_mean_error", guards.max_mean_error, 1),
        ("spectrum_ratio", "min_spectrum_ratio", guards.min_spectrum_ratio, -1),
        ("coverage_90", "min_coverage", guards.min_coverage, -1),
        ("coverage_90", "max_coverage", guards.max_coverage, 1),
    ]


def _guarded(scores: Scores, score: Score, lead: int) -> float:
    value = scores.get(score, {}).get(lead, math.nan)
    return abs(value) if score.name == "mean_error" else value


def _pooled(sums: xr.Dataset, promotion: Promotion) -> xr.Dataset:
    try:
        return pool_leads(sums, promotion.leads_minutes)
    except ValueError as error:
        raise InputError(f"promotion.leads_minutes: {error}") from None


def _where(sums: xr.Dataset, promotion: Promotion) -> str:
    leads = lead_minutes(sums)
    chosen = sorted(promotion.leads_minutes or leads)
    divisor, unit = lead_unit(leads)
    if len(chosen) == 1:
        return f"at {chosen[0] / divisor:g} {unit}"
    if chosen == [lead for lead in leads if chosen[0] <= lead <= chosen[-1]]:
        return f"over {chosen[0] / divisor:g} to {chosen[-1] / divisor:g} {unit}"
    return f"over {', '.join(f'{lead / divisor:g}' for lead in chosen)} {unit}"


def _difference_text(difference: Difference, incumbent: float, where: str, confidence: float) -> str:
    """Return the difference in percent of the incumbent's value, with its interval."""
    name, other = readable(difference.score.key()), readable(difference.other)
    if not math.isfinite(difference.low) or not incumbent > 0:
        return f"no interval for the {name} of {readable(difference.model)} {where} beside that of {other}"
    low, value, high = (100 * part / incumbent for part in (difference.low, difference.value, difference.high))
    if difference.word == "no difference":
        return (
            f"no difference in {name} {where} between {readable(difference.model)} and {other}: "
            f"{value:+.1f} % ({confidence * 100:g} % interval {low:+.1f} to {high:+.1f} %)"
        )
    ends = sorted(abs(end) for end in (low, high))
    side = "lower" if value < 0 else "higher"
    interval = f"({confidence * 100:g} % interval {ends[0]:.1f} to {ends[1]:.1f} %)"
    return (
        f"{name} of {readable(difference.model)} {where} is {abs(value):.1f} % {side} than that of {other} {interval}"
    )
