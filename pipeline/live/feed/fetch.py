"""One fetch: the frames that the store lacks, read from the feed as an ingest reads them, and kept.

A file that cannot be read, or does not fit, costs no other file.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np

from fieldcast.pipeline.config.sources import IngestOptions, SourceOptions
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.datasets.signature import DataSignature
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.clock import iso, stamp
from fieldcast.pipeline.live.feed import frame_file
from fieldcast.pipeline.live.feed.frame_file import Values
from fieldcast.pipeline.live.feed.index import NO_VERSION, Frame, FrameIndex
from fieldcast.pipeline.live.feed.limits import beyond
from fieldcast.pipeline.live.feed.poll import Feed, UnavailableError, version_of
from fieldcast.pipeline.live.feed.segments import FetchReport, OpenSegment, Segments, Window
from fieldcast.pipeline.sources.files import is_url
from fieldcast.pipeline.sources.missing import Limits
from fieldcast.pipeline.sources.target import Frames, read_frames

BATCH = 256  # candidates remembered in one transaction
BLOCK_BYTES = 1 << 26  # of a segment, read at once


class Fetch:
    """One fetch into the index and, by `write`, into the files of `folder`."""

    def __init__(
        self,
        options: SourceOptions,
        rules: IngestOptions,
        contract: DataSignature,
        index: FrameIndex,
        window: Window,
        folder: Path,
        write: Callable[[Path, bytes], None],
        limits: Mapping[str, Limits],
    ) -> None:
        self._rules, self._index, self._window, self._limits = rules, index, window, limits
        self._folder, self._write = folder, write
        self._known = index.candidates()
        self._stored = {frame.time for frame in index.frames(window.since, window.until)}
        self._report = FetchReport()
        self._aside = index.aside()
        self._segments = Segments(options, contract, window, self._known, self._stored, self._report, self._aside)
        self._feed: Feed | None = None

    def run(self, feed: Feed | None) -> FetchReport:
        """Fetch from the feed, or from the simulation where there is none.

        Raise `InputError` where the feed has files for the window, but the store is empty as none fits the model.
        """
        self._feed = feed
        segments = self._segments.simulated() if feed is None else self._opened(feed)
        self._take_all(segments)
        if feed is not None:
            self._report.examined += [segment.examined() for segment in segments if not segment.failed]
            self._remember()
        if self._report.misfits and self._index.latest() is None:
            raise InputError(min(self._report.misfits))
        self._report.added.sort()
        self._report.refused.sort()
        self._report.stale = self._stale(self._report.added)
        return self._report

    def _opened(self, feed: Feed) -> list[OpenSegment]:
        poll = feed.poll(self._known, [time for time in self._window.times() if time not in self._stored])
        self._report.waiting += poll.waiting
        self._index.forget(poll.gone)
        for candidate in poll.too_large:
            self._report.too_large(candidate)
        segments: list[OpenSegment] = []
        for candidate in reversed(poll.candidates):  # the newest first
            segment = self._segments.open(feed, candidate)
            segments += [segment] if segment else []
            if len(self._report.examined) >= BATCH:
                self._remember()
        return segments[::-1]

    def _remember(self) -> None:
        self._index.remember(self._report.examined)
        self._report.examined.clear()
        self._index.set_aside(self._report.aside, self._report.aside_frames)
        self._report.aside.clear()
        self._report.aside_frames.clear()

    def _take_all(self, segments: Sequence[OpenSegment]) -> None:
        """Take the frames that one segment alone has, segment by segment, then those that several have."""
        holders: dict[datetime, list[tuple[OpenSegment, int]]] = defaultdict(list)
        for segment in segments:
            for number in segment.wanted:
                holders[segment.times[number]].append((segment, number))
        for segment in reversed(segments):  # the newest first, should time run out
            self._take_segment(segment, [n for n in segment.wanted if len(holders[segment.times[n]]) == 1])
        for time in sorted(time for time, several in holders.items() if len(several) > 1):
            self._take_shared(time, holders[time])

    def _take_segment(self, segment: OpenSegment, numbers: Sequence[int]) -> None:
        sizes = segment.target.grid.sizes
        count = max(1, BLOCK_BYTES // (4 * sizes[Y] * sizes[X] * segment.target.coarsen**2))
        if is_url(segment.candidate.path):
            count = 1  # a request may not take long
        for start in range(0, len(numbers), count):
            block = numbers[start : start + count]
            frames = self._read(segment, block)
            if frames is None:
                return
            for position, number in enumerate(block):
                values = {name: field[position] for name, field in frames.items()}
                if self._is_possible(segment.times[number], values, segment):
                    self._take(segment.times[number], values, [segment])

    def _take_shared(self, time: datetime, holders: Sequence[tuple[OpenSegment, int]]) -> None:
        """Take a frame that several segments have, by the rule of the ingest."""
        readable = []
        for segment, number in holders:
            frames = None if segment.failed else self._read(segment, [number])
            values = {name: field[0] for name, field in frames.items()} if frames is not None else {}
            if values and self._is_possible(time, values, segment):
                readable.append((segment, values))
        rule = self._rules.duplicates
        if rule == "refuse" or len(readable) < 2:
            for segment, values in readable:
                self._take(time, values, [segment])
            return
        self._report.duplicates += len(readable) - 1
        if rule == "merge":
            self._take(time, _merged([values for _, values in readable]), [segment for segment, _ in readable])
        else:
            segment, values = readable[0 if rule == "first" else -1]
            self._take(time, values, [segment])

    def _read(self, segment: OpenSegment, numbers: Sequence[int]) -> Values | None:
        """Return these frames by variable (t, y, x); None, and the file is left for later, if they cannot be read."""

        def read() -> Frames:
            return read_frames(segment.source, np.array(numbers), segment.target)

        if self._feed is None:
            return read().values
        candidate = segment.candidate
        try:
            frames = self._feed.read(candidate, read)
            if candidate.version != NO_VERSION and version_of(Path(candidate.path).stat())[:2] != candidate.version[:2]:
                raise UnavailableError("changed while it was read: left for later")
        except Exception as error:  # a broken file may raise anything
            self._report.wait(candidate, error)
            segment.failed = True
            return None
        self._report.note_impossible(candidate.key, [segment.times[number] for number in numbers], frames.refused)
        return frames.values

    def _is_possible(self, time: datetime, values: Values, segment: OpenSegment) -> bool:
        """Return whether all values of a frame are within their limits; else refuse it."""
        reason = beyond(values, self._limits)
        if reason is None:
            return True
        if segment.candidate.version != NO_VERSION:
            self._drop(time, segment, reason)
        elif (content := frame_file.digest(values)) not in self._aside:  # named once, until its values change
            self._report.refuse_frames(segment.candidate.key, [time], reason)
            self._report.aside_frames[content] = reason
        return False

    def _take(self, time: datetime, values: Values, segments: Sequence[OpenSegment]) -> None:
        """Keep a frame unless it is empty or its time has one already."""
        origin = " + ".join(segment.candidate.key for segment in segments)
        if not any(np.isfinite(field).any() for field in values.values()):
            for segment in segments:
                self._drop(time, segment, "every cell is missing")
            return
        content = frame_file.digest(values)
        stored = self._index.frame(time)
        if stored is None:
            self._keep(time, values, segments[0], origin, content)
        elif stored.content == content or self._rules.duplicates == "first":
            self._report.duplicates += stored.origin != origin
        else:
            reason = f"conflict, other values than those of {stored.origin}, which came first and stay"
            self._report.refuse_frames(origin, [time], reason)

    def _keep(self, time: datetime, values: Values, segment: OpenSegment, origin: str, content: str) -> None:
        grid, path = segment.target.grid, self._folder / f"{stamp(time)}.nc"
        file = frame_file.encode(time, values, grid)
        sha256, statistics = hashlib.sha256(file).hexdigest(), frame_file.statistics_of(values)
        frame = Frame(time, path, sha256, origin, self._window.now, statistics, content, len(file))
        if self._index.latest() is None:
            with self._index.transaction():
                self._index.set_fact("grid", frame_file.grid_of(grid))
        if self._index.add(frame, lambda: self._write(path, file)):
            self._report.added.append(time)

    def _drop(self, time: datetime, segment: OpenSegment, reason: str) -> None:
        """Refuse a frame of a file until the file changes; that of a store is left for later: chunks may still come."""
        key = segment.candidate.key
        if segment.candidate.version == NO_VERSION:
            self._report.waiting.append(f"{key}: time {iso(time)}: {reason}: left for later")
        else:
            segment.dropped.add(time)
            self._report.refuse_frames(key, [time], reason)

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
    return any(field["valid_share"] and field["min"] != field["max"] for field in frame.statistics.values())
