"""The champion: aliases of the registered model, moved by the rule in `promotion`, with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.datasets.labels import readable
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.comparability import incomparable
from fieldcast.pipeline.evaluation.comparison import Comparison, Entry, compare_all, references_of
from fieldcast.pipeline.evaluation.promotion import Decision, decide
from fieldcast.pipeline.tracking.registry import CHALLENGER, CHAMPION, Registry, Version


def promote_by_rule(
    entries: Mapping[str, Entry],
    comparisons: Mapping[str, Comparison],
    checkpoints: Mapping[str, str],
    params: Params,
    registry: Registry,
) -> list[str]:
    """Return the decision as sentences, after moving the aliases.

    `comparisons` are those of `entries` by variable; a model that one of them leaves out is no candidate.
    `checkpoints` are the digests of the models' folders. Where the current champion is none of them, its scores are
    those of its run. Raises `InputError` for leads that no forecast has, `TrackerError` when MLflow does not answer.
    """
    current = registry.version_with(CHAMPION)
    sums = {name: entry.sums for name, entry in entries.items()}
    excluded = left_out(comparisons)
    champion = None
    if current is not None:
        champion = next((name for name in sums if checkpoints[name] == current.checkpoint), None)
        if champion is None:
            try:
                earlier = registry.scored(CHAMPION)
            except InputError as error:
                return [f"champion: version {current.number} stays, it cannot be compared: {error}."]
            champion = f"{earlier.model} of version {current.number}"
            comparable = {name: own for name, own in sums.items() if name not in excluded}
            sums[champion] = earlier.sums
            reasons = incomparable({**comparable, champion: earlier.sums}, {})
            excluded |= {name: why for name, why in reasons.items() if name == champion}
    decision = decide(sums, params.promotion, params.compare, references_of(entries), champion, excluded)
    return list(_carry_out(decision, checkpoints, current, registry))


def left_out(comparisons: Mapping[str, Comparison]) -> dict[str, list[str]]:
    """Return the reasons, each once, why models are not comparable with the others in some variable."""
    reasons: dict[str, dict[str, None]] = {}
    for comparison in comparisons.values():
        for model, why in comparison.left_out.items():
            reasons.setdefault(model, {}).update(dict.fromkeys(why))
    return {model: list(why) for model, why in reasons.items()}


def _carry_out(
    decision: Decision, checkpoints: Mapping[str, str], current: Version | None, registry: Registry
) -> list[str]:
    sentences = []
    if decision.promote or current is None:
        reason = decision.reason if decision.promote else f"the best reference within the guards; {decision.reason}"
        sentences.append(_appoint(decision.champion, CHAMPION, reason, checkpoints, registry))
    else:
        sentences.append(f"champion: {readable(decision.incumbent)} stays, version {current.number}.")
    if decision.candidate is not None and not decision.promote:
        sentences.append(_appoint(decision.candidate, CHALLENGER, decision.reason, checkpoints, registry))
    elif decision.candidate is None and current is not None:
        sentences.append(f"{decision.reason}.")
    return sentences


def _appoint(name: str, alias: str, reason: str, checkpoints: Mapping[str, str], registry: Registry) -> str:
    version = registry.version_of_checkpoint(checkpoints[name])
    if version is None:
        return f"{alias}: {readable(name)} has no version of the registered model, train it again; {reason}."
    registry.appoint(version, alias, reason)
    return f"{alias}: {readable(name)}, version {version.number}: {reason}."


@dataclass(frozen=True)
class Proposal:
    """A version proposed as champion, beside the current one."""

    version: Version
    current: Version | None
    comparisons: Mapping[str, Comparison]  # by variable
    decision: Decision | None  # by the rule; None without a current champion

    @property
    def reason(self) -> str:
        """Return the reason that is recorded with the promotion."""
        return self.decision.reason if self.decision is not None else "there was no champion"


def propose(wanted: str, params: Params, registry: Registry) -> Proposal:
    """Return the proposal to make the run, version or alias `wanted` the champion.

    Raises `InputError` where it does not exist or is the champion already, `TrackerError` when MLflow does not answer.
    """
    run = registry.scored(wanted)
    version, current = registry.version_of(run.run_id), registry.version_with(CHAMPION)
    if version is None:
        raise InputError(f"run {wanted} registered no version of the model '{registry.experiment}': train it again")
    if current is not None and current.number == version.number:
        raise InputError(f"{wanted} is version {version.number}, which is the champion already")
    entries = {run.model: Entry(run.sums, run.kind, run.costs)}
    if current is None:
        return Proposal(version, None, compare_all(entries, params.compare), None)
    office = registry.scored(CHAMPION)
    name = office.model if office.model != run.model else f"{office.model} of version {current.number}"
    entries = {name: Entry(office.sums, office.kind, office.costs), **entries}
    comparisons = compare_all(entries, params.compare)
    sums = {each: entry.sums for each, entry in entries.items()}
    decision = decide(sums, params.promotion, params.compare, references_of(entries), name, left_out(comparisons))
    return Proposal(version, current, comparisons, decision)
