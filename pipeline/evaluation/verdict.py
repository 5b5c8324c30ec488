"""What a comparison says, in sentences: who is best where, how sure that is, and what a low error may hide."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from fieldcast.pipeline.datasets.labels import lead_unit, readable
from fieldcast.pipeline.verification.aggregation import Scores
from fieldcast.pipeline.verification.orientation import badness, runs
from fieldcast.pipeline.verification.significance import Evidence

BLURRED = 0.5  # of the observed variance at fine scales: a forecast with less has lost the small features
RARE = 0.5  # of the best CSI at the highest threshold: a forecast with less misses the heavy events

FEW = 3  # models that a sentence names
MANY = ("",)  # stands for more than a sentence names

Metrics = Mapping[str, Scores]


def verdict(
    evidence: Evidence,
    metrics: Metrics,
    titles: Mapping[str, str],
    references: Sequence[str],
    excluded: Mapping[str, Sequence[str]] | None = None,
    not_promoted: Mapping[str, Sequence[str]] | None = None,
) -> list[str]:
    """Return the sentences of a comparison, most important first.

    `titles` names the scores in `evidence` that are spoken of, the first one decides; `references` are the models that
    are not trained; `excluded` says why other models were left out, `not_promoted` why some cannot be champion.
    """
    deciding, *others = titles
    sentences = [best_where(evidence, deciding, titles[deciding])]
    there = [model for model in evidence.models if model in references]
    learned = [model for model in evidence.models if model not in references]
    sentences += [against_references(evidence, model, there, deciding, titles[deciding]) for model in learned if there]
    sentences += [best_where(evidence, score, titles[score]) for score in others]
    sentences += hidden_faults(evidence, metrics, deciding, titles[deciding])
    sentences += [f"{readable(model)} is left out: {'; '.join(why)}." for model, why in (excluded or {}).items()]
    sentences += [
        f"{readable(model)} cannot be champion: {'; '.join(why)}." for model, why in (not_promoted or {}).items()
    ]
    return [*sentences, method(evidence)]


def best_where(evidence: Evidence, score: str, title: str) -> str:
    """Return which models are best at which leads: alone, or with those from which no difference is certain.

    More than `FEW` of those are not named, so that a reader finds the leads where something is sure.
    """
    leads = _leads(evidence, score)
    level = {lead: leaders(evidence, score, lead) for lead in leads}
    best = {lead: MANY if FEW < len(names) < len(evidence.models) else names for lead, names in level.items()}

    def said(names: tuple[str, ...]) -> str:
        if not names:
            return "undefined"
        if names == MANY:
            return f"no certain best, with more than {FEW} models within chance of it,"
        if len(evidence.models) == 1:
            return f"{readable(names[0])} stands alone"
        if len(names) == 1:
            return f"{readable(names[0])} is better than every other model"
        if len(names) == len(evidence.models):
            return "no difference between any models"
        return f"no difference between {_listed(names)}"

    return f"{title}: {_by_ranges(best, said)}."


def leaders(evidence: Evidence, score: str, lead: int) -> tuple[str, ...]:
    """Return the model with the best value at `lead` (minutes), and all that are not certainly worse than it.

    In the order of `evidence.models`; empty where the score is undefined for all.
    """
    first = _best(evidence, evidence.models, score, lead)
    if first is None:
        return ()
    rivals = [model for model in evidence.models if model != first and _defined(evidence, model, score, lead)]
    level = [model for model in rivals if evidence.between(first, model, score)[lead].word != "better"]
    return tuple(model for model in evidence.models if model in (first, *level))


def against_references(evidence: Evidence, model: str, references: Sequence[str], score: str, title: str) -> str:
    """Return where `model` is better or worse than the reference with the best value at the same lead."""

    def stands(lead: int) -> tuple[str, ...]:
        best = _best(evidence, references, score, lead)
        if best is None or not _defined(evidence, model, score, lead):
            return ()
        return evidence.between(model, best, score)[lead].word, best

    def said(found: tuple[str, ...]) -> str:
        if not found:
            return "undefined"
        word, reference = found
        return (
            f"no difference from {readable(reference)}"
            if word == "no difference"
            else f"{word} than {readable(reference)}"
        )

    where = {lead: stands(lead) for lead in _leads(evidence, score)}
    return f"{readable(model)} against the best reference, {title}: {_by_ranges(where, said)}."


def hidden_faults(evidence: Evidence, metrics: Metrics, score: str, title: str) -> list[str]:
    """Return warnings about the models with the best values of `score`: blurred forecasts, heavy events missed.

    Blurred: `spectrum_ratio` below `BLURRED`. Missed: CSI at the highest threshold below `RARE` of the best model's.
    """
    prefix = score.rpartition("/")[0]
    prefix += "/" if prefix else ""
    won: dict[str, list[int]] = {}
    for lead in _leads(evidence, score):
        if (best := _best(evidence, evidence.models, score, lead)) is not None:
            won.setdefault(best, []).append(lead)
    rarest = _rarest(metrics, f"{prefix}csi_")
    sentences = []
    for model, leads in won.items():
        own = metrics[model]
        last = max(leads)
        ratio = own.get(f"{prefix}spectrum_ratio", {}).get(last, math.nan)
        if ratio < BLURRED:
            sentences.append(
                f"{readable(model)} has the best {title} {_at(last, leads)} with a blurred field: "
                f"{100 * ratio:.2g} % of the observed variance at fine scales."
            )
        most = max((scores[rarest][last] for scores in metrics.values() if rarest in scores), default=math.nan)
        if rarest and own[rarest][last] < RARE * most:
            sentences.append(
                f"{readable(model)} has the best {title} {_at(last, leads)} but misses heavy events: "
                f"CSI {own[rarest][last]:.2f} at the highest threshold, the best model's is {most:.2f}."
            )
    return sentences


def method(evidence: Evidence) -> str:
    """Return how the differences were tested."""
    return (
        f"Differences over {evidence.init_times} init times, paired block bootstrap, blocks of {evidence.block} init "
        f"times, {evidence.confidence * 100:g} % confidence; not corrected for many comparisons."
    )


def spans(ranges: Sequence[tuple[int, int]], leads: Sequence[int]) -> str:
    """Return ranges of leads (minutes) as text, in the unit that `leads` are spoken of: 'from 5 to 30 minutes'."""
    divisor, unit = lead_unit(leads)
    if len(ranges) == 1 and ranges[0][0] < ranges[0][1]:
        return f"from {ranges[0][0] / divisor:g} to {ranges[0][1] / divisor:g} {unit}"
    texts = [f"{a / divisor:g}" if a == b else f"{a / divisor:g}–{b / divisor:g}" for a, b in ranges]
    return f"at {' and '.join(filter(None, [', '.join(texts[:-1]), texts[-1]]))} {unit}"


def _by_ranges(found: Mapping[int, tuple[str, ...]], said: Callable[[tuple[str, ...]], str]) -> str:
    leads = list(found)
    kinds = dict.fromkeys(found.values())
    ranges = {kind: runs({lead: found[lead] == kind for lead in leads}) for kind in kinds}
    if len(ranges) == 1:
        return f"{said(next(iter(ranges)))} at every lead"
    return "; ".join(f"{said(kind)} {spans(where, leads)}" for kind, where in ranges.items())


def _best(evidence: Evidence, models: Sequence[str], score: str, lead: int) -> str | None:
    ranks = {model: badness(score, evidence.intervals[model, score][lead].value) for model in models}
    best = min(ranks, key=lambda model: ranks[model], default=None)
    return best if best is not None and math.isfinite(ranks[best]) else None


def _defined(evidence: Evidence, model: str, score: str, lead: int) -> bool:
    return math.isfinite(evidence.intervals[model, score][lead].value)


def _leads(evidence: Evidence, score: str) -> list[int]:
    return list(evidence.intervals[evidence.models[0], score])


def _rarest(metrics: Metrics, start: str) -> str:
    """Return the CSI at the highest threshold, as scores are named; empty where there is none."""
    names = [name for name in next(iter(metrics.values())) if name.startswith(start)]
    return max(names, key=lambda name: float(name.removeprefix(start).split("_")[0]), default="")


def _at(lead: int, leads: Sequence[int]) -> str:
    return spans([(lead, lead)], leads)


def _listed(names: Sequence[str]) -> str:
    *most, last = (readable(name) for name in names)
    return f"{', '.join(most)} and {last}" if most else last
