"""Promotion rule: the best comparable model, if certainly better than the champion, and within the guards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import xarray as xr

from fieldcast.pipeline.config import Compare, CostLoss, Promotion
from fieldcast.pipeline.datasets.labels import lead_unit, readable
from fieldcast.pipeline.datasets.schema import lead_minutes
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.best_reference import best_joined
from fieldcast.pipeline.evaluation.comparability import learnt_on
from fieldcast.pipeline.evaluation.guards import Rivals, guard_fault, heavy_events
from fieldcast.pipeline.verification.aggregation import THRESHOLD, field_sums, fields_of, of_field
from fieldcast.pipeline.verification.economic import value_sums
from fieldcast.pipeline.verification.scores import Score, badness
from fieldcast.pipeline.verification.significance import Difference, evidence, pool_leads


@dataclass(frozen=True)
class Decision:
    """The outcome of the rule: the new `champion` is `candidate` when `promote`, else `incumbent`.

    `reason` is a sentence; `differences` are those of each comparable model from the champion, or without one from the
    best reference at each lead, pooled over the leads (their `lead` is the longest), best model first.
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
    A model that learnt on while it forecast is no candidate either: no schedule would issue what was scored. Over the
    pooled leads a candidate has to be better than the champion, without one than each lead's best reference; at each
    single lead `Rivals` and the guards have to let it pass, in all variables. The score is that of
    `promotion.variable`. Raises `InputError` for a variable or leads that no forecast has, or when no comparable model
    is left.
    """
    left_out = {**learnt_on(sums), **(excluded or {})}
    if champion is not None and champion in left_out:
        why = "; ".join(left_out[champion])
        reason = f"not promoted: the champion {readable(champion)} has no comparable scores: {why}"
        return Decision(None, champion, False, reason, [])
    compared = {model: own for model, own in sums.items() if model not in left_out}
    if not compared:
        raise InputError("data/scores: no model was scored on equal terms, see the comparison's list of reasons")
    fields = fields_of(next(iter(compared.values())))
    deciding = _deciding(promotion, fields)
    parts = {field: {model: of_field(own, field) for model, own in compared.items()} for field in fields}
    if promotion.cost_loss is not None:
        parts[deciding] = {
            model: with_value(own, deciding, promotion.cost_loss) for model, own in parts[deciding].items()
        }
    compared_references = [name for name in references if name in compared]
    rivals = {
        field: _rivals(part, promotion, compare, compared_references, decides=field == deciding)
        for field, part in parts.items()
    }
    faults = {model: _fault(model, own, promotion, rivals) for model, own in compared.items()}
    named = f"{readable(deciding)}: " if len(fields) > 1 else ""
    contest = _contest(parts[deciding], rivals[deciding], compare, champion, faults, named)
    if len(compared) == 1:
        return Decision(
            None, contest.incumbent, False, f"{readable(contest.incumbent)} is the only comparable model", []
        )
    return _decision(contest, faults)


def _deciding(promotion: Promotion, fields: Sequence[str]) -> str:
    """Return the field whose score decides."""
    deciding = promotion.variable or fields[0]
    if deciding not in fields:
        raise InputError(f"promotion.variable is {deciding!r}, forecast are {', '.join(fields)}")
    return deciding


def with_value(sums: xr.Dataset, field: str, user: CostLoss) -> xr.Dataset:
    """Return the sums of one field with those of a user's expenses; raise `InputError` without the user's event."""
    own = field_sums(sums, field)
    thresholds = own[THRESHOLD].values.tolist() if THRESHOLD in own.coords else []
    if user.threshold not in thresholds:
        raise InputError(
            f"promotion.cost_loss.threshold is {user.threshold:g}, verify.thresholds of {field} are {thresholds}:"
            " add it there"
        )
    expenses = value_sums(own.sel({THRESHOLD: user.threshold}, drop=True), user.ratio)
    return sums.assign({f"{field}.{name}": array for name, array in expenses.data_vars.items()})


def _fault(model: str, sums: xr.Dataset, promotion: Promotion, rivals: Mapping[str, Rivals]) -> str | None:
    """Return what keeps a model from office in one of the variables, the one that decides first; None for nothing."""
    for field in sorted(rivals, key=lambda field: not rivals[field].decides):
        if fault := rivals[field].fault(model) or guard_fault(sums, promotion, field):
            return f"{readable(field)}: {fault}" if len(rivals) > 1 else fault
    return None


@dataclass(frozen=True)
class _Contest:
    """Differences of all other models from the opponent over the pooled leads, best model first.

    The opponent is the incumbent, or the best reference at each lead; `value` is its score.
    """

    incumbent: str
    value: float
    differences: list[Difference]
    where: str
    confidence: float
    references: Sequence[str]
    passed_over: Sequence[str]  # better references, which a guard keeps from office
    named: str  # the variable, where there are several: what texts begin with

    def at_each_lead(self, difference: Difference) -> str:
        """Return that a model that learns beats the references at each lead, which it had to; else nothing."""
        learned = self.references and difference.model not in self.references
        return ", better than the best reference at each lead" if learned else ""

    def text(self, difference: Difference) -> str:
        """Return a difference in percent of the opponent's score, with its interval."""
        return self.named + _difference_text(difference, self.value, self.where, self.confidence)


def _decision(contest: _Contest, faults: Mapping[str, str | None]) -> Decision:
    """Return the decision for the first model that is better and without fault, or against all."""
    better = [difference for difference in contest.differences if difference.word == "better"]
    promoted = next((difference for difference in better if faults[difference.model] is None), None)
    passed_over = better if promoted is None else better[: better.index(promoted)]
    kept_out = [_kept_out(one.model, faults) for one in passed_over]
    if promoted is not None:
        reason = "; ".join([f"{contest.text(promoted)}{contest.at_each_lead(promoted)}, guards hold", *kept_out])
        return Decision(promoted.model, contest.incumbent, True, reason, contest.differences)
    first = contest.differences[0]
    unsure = [] if first.word == "better" else [contest.text(first)]
    kept_out += [_kept_out(name, faults) for name in contest.passed_over]
    reason = f"not promoted: {'; '.join([*unsure, *dict.fromkeys(kept_out)])}"
    return Decision(first.model, contest.incumbent, False, reason, contest.differences)


def _kept_out(model: str, faults: Mapping[str, str | None]) -> str:
    return f"{readable(model)} is kept out: {faults[model]}"


def _rivals(
    sums: Mapping[str, xr.Dataset],
    promotion: Promotion,
    compare: Compare,
    references: Sequence[str],
    *,
    decides: bool,
) -> Rivals:
    first = next(iter(sums.values()))
    leads = sorted(promotion.leads_minutes or lead_minutes(first))
    _pooled(first, leads)  # raises for leads that no forecast has
    score = Score(promotion.score if decides or promotion.cost_loss is None else "rmse")  # users have one variable
    ratio = promotion.guards.min_csi_ratio
    heavy = heavy_events(first, leads) if ratio else None
    found = evidence(sums, list(filter(None, (score, heavy))), compare)
    return Rivals(references, found, leads, score, heavy, ratio or 0.0, decides)


def _contest(
    sums: Mapping[str, xr.Dataset],
    rivals: Rivals,
    compare: Compare,
    champion: str | None,
    faults: Mapping[str, str | None],
    named: str,
) -> _Contest:
    score = rivals.score
    pooled = {model: _pooled(own, rivals.leads) for model, own in sums.items()}
    opponent = champion if champion in sums else None
    if opponent is None and rivals.references:
        opponent, best = best_joined(sums, rivals.references, rivals.evidence, score, rivals.leads)
        pooled = {**pooled, opponent: _pooled(best, rivals.leads)}
    found = evidence(pooled, [score], compare)
    values = {model: next(iter(found.intervals[model, score].values())).value for model in pooled}
    ranked = sorted(sums, key=lambda model: badness(score, values[model]))
    in_office = [name for name in ranked if name == champion]
    eligible = in_office or [name for name in ranked if name in rivals.references] or ranked
    incumbent = next((name for name in eligible if faults[name] is None), eligible[0])
    opponent = opponent or incumbent
    others = [model for model in ranked if model not in (incumbent, opponent)]
    differences = [one for model in others for one in found.between(model, opponent, score).values()]
    where = _where(lead_minutes(next(iter(sums.values()))), rivals.leads)
    passed_over = eligible[: eligible.index(incumbent)]
    return _Contest(
        incumbent, values[opponent], differences, where, compare.confidence, rivals.references, passed_over, named
    )


def _pooled(sums: xr.Dataset, leads: Sequence[float]) -> xr.Dataset:
    try:
        return pool_leads(sums, leads)
    except ValueError as error:
        raise InputError(f"promotion.leads_minutes: {error}") from None


def _where(leads: Sequence[float], chosen: Sequence[float]) -> str:
    divisor, unit = lead_unit(leads)
    if len(chosen) == 1:
        return f"at {chosen[0] / divisor:g} {unit}"
    if list(chosen) == [lead for lead in leads if chosen[0] <= lead <= chosen[-1]]:
        return f"over {chosen[0] / divisor:g} to {chosen[-1] / divisor:g} {unit}"
    return f"over {', '.join(f'{lead / divisor:g}' for lead in chosen)} {unit}"


def _difference_text(difference: Difference, incumbent: float, where: str, confidence: float) -> str:
    """Return the difference in percent of the incumbent's value, with its interval; of what is perfect for a user's."""
    incumbent = 1.0 if difference.score.name == "value" else incumbent
    name, other = readable(difference.score.key()), readable(difference.other)
    if not math.isfinite(difference.low) or not incumbent > 0:
        return f"no interval for the {name} of {readable(difference.model)} {where} beside that of {other}"
    low, value, high = (100 * part / incumbent for part in (difference.low, difference.value, difference.high))
    if difference.word == "no difference":
        return (
            f"no certain difference in {name} {where} between {readable(difference.model)} and {other}: "
            f"{value:+.1f} % ({confidence * 100:g} % interval {low:+.1f} to {high:+.1f} %)"
        )
    ends = sorted(abs(end) for end in (low, high))
    side = "lower" if value < 0 else "higher"
    interval = f"({confidence * 100:g} % interval {ends[0]:.1f} to {ends[1]:.1f} %)"
    return (
        f"{name} of {readable(difference.model)} {where} is {abs(value):.1f} % {side} than that of {other} {interval}"
    )
