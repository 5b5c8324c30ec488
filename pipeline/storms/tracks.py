"""Tracks of storm cells: which of one field is which of the next, and how fast each moves.

Storm cells of two fields in turn are paired by the distance of their centres, as for scores. One that splits goes on as
its largest part, and of several that merge the largest goes on: the others end or begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fieldcast.pipeline.verification.storm_cells import StormCells, match


@dataclass(frozen=True)
class Track:
    """One storm cell through several fields: their positions in turn, and its number in each, from 0."""

    fields: tuple[int, ...]
    numbers: tuple[int, ...]


def follow(found: Sequence[StormCells], within: float) -> list[Track]:
    """Return the tracks of storm cells through fields in turn, in which none moves farther than `within` km at once.

    They are in order of the field in which they begin, then of size.
    """
    tracks: list[Track] = []
    active: dict[int, int] = {}  # number in the last field -> position in `tracks`
    for k, field in enumerate(found):
        parents = dict[int, int]() if k == 0 else _parents(found[k - 1], field, within)
        now = {}
        for number in range(len(field)):
            if number in parents:
                position = active[parents[number]]
                track = tracks[position]
                tracks[position] = Track((*track.fields, k), (*track.numbers, number))
            else:
                position = len(tracks)
                tracks.append(Track((k,), (number,)))
            now[number] = position
        active = now
    return tracks


def _parents(before: StormCells, after: StormCells, within: float) -> dict[int, int]:
    """Return for storm cells of a field which of the field before they go on, by their numbers from 0."""
    first, second = match(before.centres, after.centres, within)
    parents = dict(zip(second.tolist(), first.tolist(), strict=True))
    shared = np.stack([before.labels, after.labels])[:, (before.labels > 0) & (after.labels > 0)]
    overlaps = {(int(a) - 1, int(b) - 1) for a, b in np.unique(shared, axis=1).T}
    for old, new in sorted(overlaps, key=lambda pair: (pair[1], pair[0])):  # the largest first
        if new in parents:
            if parents[new] != old and old not in parents.values() and before.areas[old] > before.areas[parents[new]]:
                parents[new] = old  # merged: the largest goes on
        elif (smaller := next((b for b, a in parents.items() if a == old), None)) is None:
            parents[new] = old
        elif after.areas[new] > after.areas[smaller] and (old, smaller) in overlaps:
            del parents[smaller]  # split: its largest part goes on
            parents[new] = old
    return parents


def velocity(track: Track, found: Sequence[StormCells], step_hours: float) -> np.ndarray | None:
    """Return the velocity (y, x) in km/h of a track: the slope of its centres in time; None with one field alone."""
    if len(track.fields) < 2:
        return None
    hours = np.array(track.fields) * step_hours
    centres = np.stack(
        [found[field].centres[number] for field, number in zip(track.fields, track.numbers, strict=True)]
    )
    elapsed = hours - hours.mean()
    slope: np.ndarray = elapsed @ (centres - centres.mean(axis=0)) / (elapsed @ elapsed)
    return slope
