"""Guards of a promotion: limits of scores, and no champion that a reference beats at one of the leads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import xarray as xr

from fieldcast.pipeline.config import Guards, Promotion, amount_of
from fieldcast.pipeline.datasets.labels import lead_unit, readable
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, lead_minutes
from fieldcast.pipeline.evaluation.best_reference import best_of
from fieldcast.pipeline.evaluation.comparison import only_field
from fieldcast.pipeline.verification.aggregation import THRESHOLD, field_sums, fields_of, of_field, scores_of, units_of
from fieldcast.pipeline.verification.scores import Score
from fieldcast.pipeline.verification.significance import Evidence

SETTING = "promotion.guards"
EVENTFUL = 8  # init times with events: with fewer of them a difference in CSI says nothing


def guard_fault(sums: xr.Dataset, promotion: Promotion, field: str | None = None) -> str | None:
    """Return the first limit that is broken at one of the leads, as text with the setting's name; None if all hold.

    `sums` may be of several fields, of which `field`, by default the first, is looked at. Leads are checked one by one,
    so that errors of opposite sign do not cancel. A score that a model does not have, such as the coverage of a model
    without members, breaks no guard.
    """
    fields = fields_of(sums)
    field = field or fields[0]
    scores = scores_of(of_field(sums, field))
    leads = promotion.leads_minutes or lead_minutes(sums)
    largest = amount_of(promotion.guards.max_mean_error, field, fields)
    for name, setting, limit, sign in _limits(promotion.guards, largest):
        values = {lead: _guarded(scores, Score(name), lead) for lead in leads}
        defined = {lead: value for lead, value in values.items() if not math.isnan(value)}
        if limit is None or not defined:
            continue
        worst = max(defined, key=lambda lead: sign * defined[lead])
        if sign * defined[worst] > sign * limit:
            side = "above" if sign > 0 else "below"
            when = _at(worst, lead_minutes(sums))
            return f"{readable(name)} {defined[worst]:.3g} {when} is {side} {limit:g} ({SETTING}.{setting})"
    return None


@dataclass(frozen=True)
class Rivals:
    """The references at the leads of a promotion, with the evidence on all models in one variable at each lead."""

    references: Sequence[str]
    evidence: Evidence
    leads: Sequence[float]  # minutes
    score: Score  # that decides
    heavy: Score | None  # CSI of heavy events, where it is a guard
    min_csi_ratio: float  # of a model's to the best reference's
    decides: bool = True  # whether this is the variable in which a model has to be better

    def fault(self, model: str) -> str | None:
        """Return how `model` falls short of the best reference at one of the leads, as text; None where it does not.

        A model that learns has to be certainly better in the score of the variable that decides, and in no other
        variable certainly worse. In the CSI of heavy events no model may be certainly worse and have less than
        `min_csi_ratio` of the reference's value.
        """
        return (None if model in self.references else self._not_better(model)) or self._misses_events(model)

    def _not_better(self, model: str) -> str | None:
        for lead in self.leads:
            best = best_of(self.evidence, self.references, self.score, lead)
            if best is None:
                continue
            word = self.evidence.between(model, best, self.score)[lead].word
            if word == "better" or (word == "no difference" and not self.decides):
                continue
            name, when = readable(self.score.key()), _at(lead, self._all_leads())
            fault = "not certainly better" if self.decides else "certainly worse"
            return f"{name} {when} is {fault} than that of {readable(best)} (promotion.leads_minutes)"
        return None

    def _misses_events(self, model: str) -> str | None:
        for lead in self.leads if self.heavy is not None else ():
            assert self.heavy is not None
            best = best_of(self.evidence, self.references, self.heavy, lead)
            if best is None or best == model:
                continue
            own, other = (self.evidence.intervals[name, self.heavy][lead].value for name in (model, best))
            worse = self.evidence.between(model, best, self.heavy)[lead].word == "worse"
            if worse and own < self.min_csi_ratio * other:
                limit = "" if self.min_csi_ratio == 1 else f"below {self.min_csi_ratio:g} of "
                return (
                    f"{self.heavy.title()} {own:.2f} {_at(lead, self._all_leads())} is {limit or 'worse than '}the "
                    f"{other:.2f} of {readable(best)} ({SETTING}.min_csi_ratio)"
                )
        return None

    def _all_leads(self) -> list[float]:
        return list(next(iter(self.evidence.intervals.values())))


def heavy_events(sums: xr.Dataset, leads: Sequence[float]) -> Score | None:
    """Return the CSI of the only field at the highest threshold with events; None without such a threshold.

    A threshold has events where `EVENTFUL` init times or more have observed some at each of `leads` (minutes).
    """
    field = only_field(sums)
    own = field_sums(sums, field)
    if THRESHOLD not in own.coords:
        return None
    chosen = [lead_minutes(sums).index(lead) for lead in leads]
    seen = (own["hits"] + own["misses"] > 0).isel({LEAD_TIME: chosen}).sum(INIT_TIME).min(LEAD_TIME)
    having = own[THRESHOLD].values[seen.values >= EVENTFUL].tolist()
    return Score("csi", having[-1], None, units_of(sums, field)) if having else None


def _limits(guards: Guards, max_mean_error: float | None) -> list[tuple[str, str, float | None, int]]:
    """Return score, setting, limit and the forbidden side of the limit (1: above, −1: below)."""
    return [
        ("mean_error", "max_mean_error", max_mean_error, 1),
        ("spectrum_ratio", "min_spectrum_ratio", guards.min_spectrum_ratio, -1),
        ("coverage_90", "min_coverage", guards.min_coverage, -1),
        ("coverage_90", "max_coverage", guards.max_coverage, 1),
    ]


def _guarded(scores: Mapping[Score, Mapping[float, float]], score: Score, lead: float) -> float:
    value = scores.get(score, {}).get(lead, math.nan)
    return abs(value) if score.name == "mean_error" else value


def _at(lead: float, leads: Sequence[float]) -> str:
    divisor, unit = lead_unit(leads)
    return f"at {lead / divisor:g} {unit}"
