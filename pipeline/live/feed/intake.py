"""One look at a feed: the frames that the store lacks, read as an ingest reads them, and handed on to be kept.

A file that cannot be read, or does not fit, costs nothing but itself.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import IngestOptions, SourceOptions
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.datasets.signature import DataSignature
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.feed.index import NO_STATE, Frame, FrameIndex
from fieldcast.pipeline.live.feed.poll import Feed, UnavailableError, state_of
from fieldcast.pipeline.live.feed.segments import Found, Opener, Report, Window
from fieldcast.pipeline.sources.files import is_url
from fieldcast.pipeline.sources.target import read_frames

NOTES = 256  # files remembered in one transaction
BLOCK_BYTES = 1 << 26  # of a part, read at once

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Arrival:
    """A frame that is new: its values (y, x) by variable, the grid they lie on, and where they come from."""

    time: datetime
    values: Values
    grid: xr.Dataset
    origin: str
    content: str  # SHA-256 of the values


@dataclass(frozen=True)
class Scan:
    """What a look at the feed brought."""

    added: list[datetime] = field(default_factory=list)
    duplicates: int = 0  # frames that another file had brought before
    waiting: list[str] = field(default_factory=list)  # half-written, unreadable or absent: left for later
    refused: list[str] = field(default_factory=list)  # what will not come in, and why; said once
    stale: list[datetime] = field(default_factory=list)  # frames with all values of the step before, and not constant


class Entry(NamedTuple):
    """One frame of a part."""

    found: Found
    number: int


class Intake:
    """One look at the feed; `run` returns what it brought."""

    def __init__(
        self,
        options: SourceOptions,
        rules: IngestOptions,
        contract: DataSignature,
        index: FrameIndex,
        window: Window,
        keep: Callable[[Arrival], bool],
    ) -> None:
        self._rules, self._index, self._window, self._keep = rules, index, window, keep
        self._seen = index.seen()
        self._stored = {frame.time for frame in index.frames(window.since, window.until)}
        self._report = Report()
        self._opener = Opener(options, contract, window, self._seen, self._stored, self._report)
        self._added: list[datetime] = []
        self._duplicates = 0
        self._feed: Feed | None = None

    def run(self, feed: Feed | None) -> Scan:
        """Look at the feed, or at the simulation where there is none.

        Raise `InputError` where the feed has files for the window, but the store is empty as none fits the model.
        """
        self._feed = feed
        founds = self._opener.simulated() if feed is None else self._opened(feed)
        self._take_all(founds)
        self._report.notes += [note for found in founds if (note := found.note())]
        self._remember()
        if self._report.misfits and self._index.latest() is None:
            raise InputError(self._report.misfits[0])
        added = sorted(self._added)
        return Scan(added, self._duplicates, self._report.waiting, self._report.refused, self._stale(added))

    def _opened(self, feed: Feed) -> list[Found]:
        offers = feed.offers(self._seen, [time for time in self._window.times() if time not in self._stored])
        self._report.waiting += offers.waiting
        self._index.forget(offers.gone)
        founds = []
        for offer in offers.found:
            found = self._opener.open(feed, offer)
            founds += [found] if found else []
            if len(self._report.notes) >= NOTES:
                self._remember()
        return founds

    def _remember(self) -> None:
        self._index.note([note for note in self._report.notes if note != self._seen.get(note.key)])
        self._report.notes.clear()

    def _take_all(self, founds: Sequence[Found]) -> None:
        """Take the frames that one part alone has, part by part, then those that several have."""
        entries: dict[datetime, list[Entry]] = defaultdict(list)
        for found in founds:
            for number in found.wanted:
                entries[found.times[number]].append(Entry(found, number))
        alone = {(id(it[0].found), it[0].number) for it in entries.values() if len(it) == 1}
        for found in founds:
            self._take_part(found, [number for number in found.wanted if (id(found), number) in alone])
        for time in sorted(time for time, several in entries.items() if len(several) > 1):
            self._take_shared(time, entries[time])

    def _take_part(self, found: Found, numbers: Sequence[int]) -> None:
        sizes = found.target.grid.sizes
        count = max(1, BLOCK_BYTES // (4 * sizes[Y] * sizes[X] * found.target.coarsen**2))
        if found.offer and is_url(found.offer.path):
            count = 1  # a request may not take long
        for start in range(0, len(numbers), count):
            block = numbers[start : start + count]
            frames = self._read(found, block)
            if frames is None:
                return
            for position, number in enumerate(block):
                values = {name: field[position] for name, field in frames.items()}
                self._take(found.times[number], values, [found])

    def _take_shared(self, time: datetime, entries: Sequence[Entry]) -> None:
        """Take a frame that several files have, as `rules` say."""
        readable = []
        for entry in entries:
            frames = None if entry.found.failed else self._read(entry.found, [entry.number])
            if frames is not None:
                readable.append((entry.found, {name: field[0] for name, field in frames.items()}))
        rule = self._rules.duplicates
        if rule == "refuse" or len(readable) < 2:
            for found, values in readable:
                self._take(time, values, [found])
            return
        self._duplicates += len(readable) - 1
        if rule == "merge":
            self._take(time, _merged([values for _, values in readable]), [found for found, _ in readable])
        else:
            found, values = readable[0 if rule == "first" else -1]
            self._take(time, values, [found])

    def _read(self, found: Found, numbers: Sequence[int]) -> Values | None:
        """Return these frames by variable (t, y, x); None, and the file is left for later, if they cannot be read."""

        def read() -> Values:
            return read_frames(found.part, np.array(numbers), found.target)

        offer = found.offer
        if offer is None or self._feed is None:
            return read()
        try:
            frames = self._feed.read(offer, read)
            if offer.state != NO_STATE and state_of(Path(offer.path).stat())[:2] != offer.state[:2]:
                raise UnavailableError("changed while it was read: left for later")
        except Exception as error:  # a broken file may raise anything
            self._report.wait(offer, self._seen.get(offer.key), error)
            found.failed = True
            return None
        return frames

    def _take(self, time: datetime, values: Values, founds: Sequence[Found]) -> None:
        """Hand a frame on unless it is empty or there already."""
        origin = " + ".join(found.key for found in founds)
        if not any(np.isfinite(field).any() for field in values.values()):
            self._drop_empty(time, founds)
            return
        content = _digest(values)
        stored = self._index.frame(time)
        if stored is None:
            if self._keep(Arrival(time, values, founds[0].target.grid, origin, content)):
                self._added.append(time)
        elif stored.content == content or self._rules.duplicates == "first":
            self._duplicates += stored.origin != origin
        else:
            reason = f"conflict, other values than those of {stored.origin}, which came first and stay"
            self._report.refuse(origin, [time], reason)

    def _drop_empty(self, time: datetime, founds: Sequence[Found]) -> None:
        for found in founds:
            if found.offer and found.offer.state == NO_STATE:  # a store whose chunk of data may still come
                self._report.waiting.append(f"{found.key}: time {iso(time)}: every cell is missing: left for later")
            else:
                found.dropped.add(time)
                self._report.refuse(found.key, [time], "every cell is missing")

    def _stale(self, added: Sequence[datetime]) -> list[datetime]:
        """Return the times, of new frames or next to them, whose frame repeats the one before although it varies."""
        if not added:
            return []
        step = self._window.step
        frames = {frame.time: frame for frame in self._index.frames(added[0] - step, added[-1] + step)}
        new = set(added)
        pairs = [(frames.get(time - step), frame) for time, frame in frames.items() if {time, time - step} & new]
        return [after.time for before, after in pairs if before and before.content == after.content and _varies(after)]


def _merged(fields: Sequence[Values]) -> Values:
    """Return one frame whose cells come from the first that has them."""
    merged = {name: np.full_like(field, np.nan) for name, field in fields[0].items()}
    for values in fields:
        for name, cells in merged.items():
            np.copyto(cells, values[name], where=np.isnan(cells))
    return merged


def _varies(frame: Frame) -> bool:
    return any(it["valid_share"] and it["min"] != it["max"] for it in frame.statistics.values())


def _digest(values: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values[name], "<f4").tobytes())
    return digest.hexdigest()
