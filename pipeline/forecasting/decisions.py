"""Decisions from distributions: how many members must reach a threshold for the event to be forecast.

The mean of members is smooth, and seldom heavy: whether it rains more than 5 mm/h is better decided by the probability
of it. For each lead and field, the validation period says from which probability on the critical success index is the
highest; it is kept for levels from light to heavy and interpolated between them, so that a threshold may be chosen
later than the training.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

PREFIX = "decisions."  # of its arrays in a checkpoint
LEVELS, VOTES = PREFIX + "levels", PREFIX + "votes"
SHARES = 1 - np.array([0.5, 0.3, 0.2, 0.1, 0.05, 0.03, 0.02, 0.01, 0.005, 0.003, 0.001])  # of observed values below
LEAST_EVENTS = 100  # observed cells of a level: with fewer the best vote is one of chance


@dataclass(frozen=True)
class Decisions:
    """Votes (lead, c, level) of members that make an event of each level (c, level), in the fields' units."""

    levels: np.ndarray
    votes: np.ndarray

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Decisions | None:
        """Return the decisions among a checkpoint's arrays; None where there are none."""
        return cls(arrays[LEVELS], arrays[VOTES]) if LEVELS in arrays else None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the decisions as arrays of a checkpoint."""
        return {LEVELS: self.levels, VOTES: self.votes}


class VoteCounts:
    """Hits and forecasts of every number of votes, added up over validation init times."""

    def __init__(self, levels: np.ndarray, members: int, leads: int) -> None:
        self.levels, self.members = levels, members  # (c, level)
        shape = (leads, *levels.shape, members)
        self.hits, self.forecast = np.zeros(shape), np.zeros(shape)  # by the least number of votes, 1 first
        self.observed = np.zeros(shape[:-1])

    def add(self, members: np.ndarray, observed: np.ndarray) -> None:
        """Add members (b, m, lead, c, y, x) and what was observed (b, lead, c, y, x), NaN missing."""
        valid = np.isfinite(observed) & np.isfinite(members).all(axis=1)
        for c, levels in enumerate(self.levels):
            for k, level in enumerate(levels):
                votes = (members[:, :, :, c] >= level).sum(axis=1)  # (b, lead, y, x)
                for lead in range(votes.shape[1]):
                    known = valid[:, lead, c]
                    event = observed[:, lead, c][known] >= level
                    cast = votes[:, lead][known]
                    self.forecast[lead, c, k] += _at_least(cast, self.members)
                    self.hits[lead, c, k] += _at_least(cast[event], self.members)
                    self.observed[lead, c, k] += event.sum()

    def decisions(self) -> Decisions:
        """Return the votes with the highest critical success index; a level without enough events has its neighbour's.

        Without any level that has them, half of the members decide.
        """
        union = self.forecast + self.observed[..., None] - self.hits
        csi = np.divide(self.hits, union, out=np.zeros_like(union), where=union > 0)
        best = csi.argmax(axis=-1) + 1.0
        votes = np.full(best.shape, np.ceil(self.members / 2))
        for lead, c in np.ndindex(*best.shape[:2]):
            enough = self.observed[lead, c] >= LEAST_EVENTS
            if enough.any():
                votes[lead, c] = np.interp(self.levels[c], self.levels[c][enough], best[lead, c][enough])
        return Decisions(self.levels.astype(np.float32), votes.astype(np.float32))


def levels_of(observed: Iterable[np.ndarray]) -> np.ndarray:
    """Return levels (c, level) that ascend: quantiles of observed values (..., c, y, x), of those above the least."""
    fields = [np.moveaxis(block, -3, 0).reshape(block.shape[-3], -1) for block in observed]
    return np.stack([_levels(values) for values in np.concatenate(fields, axis=1)])


def _levels(values: np.ndarray) -> np.ndarray:
    known = values[np.isfinite(values)]
    above = known[known > known.min()] if known.size else np.ones(1)
    levels: np.ndarray = np.quantile(above if above.size else known, SHARES)
    return levels


def _at_least(votes: np.ndarray, members: int) -> np.ndarray:
    """Return how many cells have at least 1, 2 … `members` votes."""
    counts = np.bincount(votes.ravel(), minlength=members + 1)
    return counts[::-1].cumsum()[::-1][1:].astype(np.float64)
