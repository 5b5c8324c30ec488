"""Verdict of a comparison in sentences: the best models by lead, their certainty, faults that a low error hides."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import TypeVar

from fieldcast.pipeline.datasets.labels import lead_unit, readable
from fieldcast.pipeline.evaluation.best_reference import best_of
from fieldcast.pipeline.verification.scores import Score, Scores
from fieldcast.pipeline.verification.significance import Difference, Evidence

Number = TypeVar("Number", int, float)
BLURRED = 0.5  # of the observed variance at fine scales: a forecast with less has lost the small features
RARE = 0.5  # of the best CSI at the highest threshold: a forecast with less misses the heavy events
FEW = 3  # models that a sentence names
NO_REFERENCES = "No reference was compared: no model is known to be better than a forecast that needs none."
MANY = ("",)  # in place of more names than that

Metrics = Mapping[str, Scores]


def verdict(
    evidence: Evidence,
    metrics: Metrics,
    scores: Sequence[Score],
    references: Sequence[str],
    excluded: Mapping[str, Sequence[str]] | None = None,
    not_promoted: Mapping[str, Sequence[str]] | None = None,
    warnings: Sequence[str] = (),
) -> list[str]:
    """Return the sentences of a comparison, most important first.

    There is one about each of `scores`, the first of which decides; `references` are the models that are not trained;
    `excluded` holds reasons why other models were left out, `not_promoted` reasons why some cannot be champion;
    `warnings` are sentences about faults found elsewhere.
    """
    deciding, *others = scores
    sentences = [best_models(evidence, deciding)]
    compared = [model for model in evidence.models if model in references]
    learned = [model for model in evidence.models if model not in references]
    sentences += [against_references(evidence, model, compared, deciding) for model in learned if compared]
    sentences += [] if compared else [NO_REFERENCES]
    sentences += [best_models(evidence, score) for score in others]
    sentences += [*hidden_faults(evidence, metrics, deciding), *warnings]
    sentences += [of_trainings(evidence, group, deciding) for group in evidence.trainings]
    sentences += [f"{readable(model)} is left out: {'; '.join(why)}." for model, why in (excluded or {}).items()]
    sentences += [
        f"{readable(model)} cannot be champion: {'; '.join(why)}." for model, why in (not_promoted or {}).items()
    ]
    return [*sentences, method(evidence)]


def best_models(evidence: Evidence, score: Score) -> str:
    """Return which models are best at which leads: one, or all from which it does not differ for certain.

    More than `FEW` of those are not named, so that readers see the leads with a certain difference.
    """
    level = {lead: leaders(evidence, score, lead) for lead in _leads(evidence, score)}
    best = {lead: MANY if FEW < len(names) < len(evidence.models) else names for lead, names in level.items()}

    def phrase(names: tuple[str, ...]) -> str:
        if not names:
            return "undefined"
        if names == MANY:
            return f"no certain best, with more than {FEW} models within chance of it,"
        if len(evidence.models) == 1:
            return f"{readable(names[0])} is the only model"
        if len(names) == 1:
            return f"{readable(names[0])} is better than every other model"
        if len(names) == len(evidence.models):
            return "no certain difference between any models"
        return f"no certain difference between {_enumeration(names)}"

    return f"{score.title()}: {_by_ranges(best, phrase)}."


def leaders(evidence: Evidence, score: Score, lead: float) -> tuple[str, ...]:
    """Return the model with the best value at `lead` (minutes), and all that are not certainly worse than it.

    In the order of `evidence.models`; empty where the score is undefined for all.
    """
    first = best_of(evidence, evidence.models, score, lead)
    if first is None:
        return ()
    rivals = [model for model in evidence.models if model != first and _defined(evidence, model, score, lead)]
    level = [model for model in rivals if evidence.between(first, model, score)[lead].word != "better"]
    return tuple(model for model in evidence.models if model in (first, *level))


def against_references(evidence: Evidence, model: str, references: Sequence[str], score: Score) -> str:
    """Return where `model` is better or worse than the reference with the best value at the same lead."""

    def difference(lead: float) -> tuple[str, ...]:
        best = best_of(evidence, references, score, lead)
        if best is None or not _defined(evidence, model, score, lead):
            return ()
        return outcome(evidence.between(model, best, score)[lead]), best

    def phrase(outcome_and_reference: tuple[str, ...]) -> str:
        if not outcome_and_reference:
            return "undefined"
        result, reference = outcome_and_reference
        return f"{result} {readable(reference)}"

    differences = {lead: difference(lead) for lead in _leads(evidence, score)}
    return f"{readable(model)} against the best reference, {score.title()}: {_by_ranges(differences, phrase)}."


def outcome(difference: Difference) -> str:
    """Return what a model is beside another, in words that the other's name follows."""
    if difference.value == difference.low == difference.high == 0:
        return "equal to"
    return {"better": "better than", "worse": "worse than"}.get(difference.word, "no certain difference from")


def hidden_faults(evidence: Evidence, metrics: Metrics, score: Score) -> list[str]:
    """Return warnings about the models with the best values of `score`: blurred forecasts, heavy events missed.

    Blurred: spectrum ratio below `BLURRED`. Missed: CSI, at the highest threshold where
    some model has any, below `RARE` of the best model's.
    """
    leads_won: dict[str, list[float]] = {}
    for lead in _leads(evidence, score):
        if (best := best_of(evidence, evidence.models, score, lead)) is not None:
            leads_won.setdefault(best, []).append(lead)
    fine, compared = Score("spectrum_ratio", field=score.field), [metrics[model] for model in evidence.models]
    sentences = []
    for model, leads in leads_won.items():
        scores, last = metrics[model], max(leads)
        rarest = _rarest(compared, score.field, last)
        start = f"{readable(model)} has the best {score.title()} {spans([(last, last)], _leads(evidence, score))}"
        ratio = scores.get(fine, {}).get(last, math.nan)
        if ratio < BLURRED:
            sentences.append(
                f"{start} with a blurred field: {100 * ratio:.2g} % of the observed variance at fine scales."
            )
        if rarest is None:
            continue
        most = max(csi for other in compared if (csi := other.get(rarest, {}).get(last, 0)) > 0)
        if not scores[rarest][last] >= RARE * most:
            sentences.append(
                f"{start} but misses heavy events: {rarest.title()} is {scores[rarest][last]:.2f}, the best model's "
                f"{most:.2f}."
            )
    return sentences


def of_trainings(evidence: Evidence, group: Sequence[str], score: Score) -> str:
    """Return how far apart the trainings of one model with several seeds are, at the first and the last lead."""
    leads = _leads(evidence, score)
    spread = []
    for lead in dict.fromkeys((leads[0], leads[-1])):
        values = [evidence.intervals[model, score][lead].value for model in group]
        spread.append(f"{fmean(values):.3g} ± {stdev(values):.1g} {spans([(lead, lead)], leads)}")
    return (
        f"{_enumeration(group)} are {len(group)} trainings of one model, {score.title()} {' and '.join(spread)} "
        "(mean ± standard deviation): their intervals and differences allow for that."
    )


def method(evidence: Evidence) -> str:
    """Return how the differences were tested."""
    return (
        f"Differences over {evidence.init_times} init times, paired block bootstrap, blocks of {evidence.block} init "
        f"times, {evidence.confidence * 100:g} % confidence; not corrected for many comparisons."
    )


def spans(ranges: Sequence[tuple[float, float]], leads: Sequence[float]) -> str:
    """Return ranges of leads (minutes) as text, in the usual unit of `leads`: 'from 5 to 30 minutes'."""
    divisor, unit = lead_unit(leads)
    if len(ranges) == 1 and ranges[0][0] < ranges[0][1]:
        return f"from {ranges[0][0] / divisor:g} to {ranges[0][1] / divisor:g} {unit}"
    texts = [f"{a / divisor:g}" if a == b else f"{a / divisor:g}–{b / divisor:g}" for a, b in ranges]
    unit = unit.removesuffix("s") if texts == ["1"] else unit
    return f"at {' and '.join(filter(None, [', '.join(texts[:-1]), texts[-1]]))} {unit}"


def unbroken(flags: Mapping[Number, bool]) -> list[tuple[Number, Number]]:
    """Return (first, last) key of each unbroken run of true values, in the mapping's order."""
    groups = (list(group) for _, group in groupby(flags.items(), key=lambda item: item[1]))
    return [(group[0][0], group[-1][0]) for group in groups if group[0][1]]


def _by_ranges(by_lead: Mapping[float, tuple[str, ...]], phrase: Callable[[tuple[str, ...]], str]) -> str:
    leads = list(by_lead)
    outcomes = dict.fromkeys(by_lead.values())
    ranges = {outcome: unbroken({lead: by_lead[lead] == outcome for lead in leads}) for outcome in outcomes}
    if len(ranges) == 1 and len(leads) > 1:
        return f"{phrase(next(iter(ranges)))} at every lead"
    return "; ".join(f"{phrase(outcome)} {spans(where, leads)}" for outcome, where in ranges.items())


def _defined(evidence: Evidence, model: str, score: Score, lead: float) -> bool:
    return math.isfinite(evidence.intervals[model, score][lead].value)


def _leads(evidence: Evidence, score: Score) -> list[float]:
    return list(evidence.intervals[evidence.models[0], score])


def _rarest(metrics: Sequence[Scores], field: str, lead: float) -> Score | None:
    """Return the CSI of `field` at the highest threshold where some model has any at `lead`; None without one."""
    scores = [score for score in metrics[0] if score.name == "csi" and score.field == field]
    having = [score for score in scores if any(own.get(score, {}).get(lead, 0) > 0 for own in metrics)]
    return max(having, key=lambda score: score.threshold or 0.0, default=None)


def _enumeration(names: Sequence[str]) -> str:
    *most, last = (readable(name) for name in names)
    return f"{', '.join(most)} and {last}" if most else last
