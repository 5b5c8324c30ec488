"""Segments of a feed: candidates opened by their source, compared with the training data, and their times judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np

from fieldcast.pipeline.config.sources import SourceOptions
from fieldcast.pipeline.datasets.signature import DataSignature, compare_signatures, signature_of
from fieldcast.pipeline.datasets.times import from_minutes, from_numpy, to_numpy, tolerance
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.feed.index import NO_VERSION, Aside, Candidate
from fieldcast.pipeline.live.feed.limits import MOST_TIMES
from fieldcast.pipeline.live.feed.poll import Feed, UnavailableError
from fieldcast.pipeline.sources import Segment, open_source
from fieldcast.pipeline.sources.files import file_sha256, one_line
from fieldcast.pipeline.sources.storms import StormsSource
from fieldcast.pipeline.sources.target import Target, target_of

TRIES = 3  # of a file that cannot be read and does not change: the clocks of file systems are coarse


@dataclass(frozen=True)
class Window:
    """The times that are wanted: those of the model's time axis from `since` to `until`."""

    since: datetime
    until: datetime
    now: datetime
    step: timedelta
    phase: timedelta

    @classmethod
    def of(cls, contract: DataSignature, since: datetime, until: datetime, now: datetime) -> Window:
        """Return the window on the axis of a contract."""
        step, phase = timedelta(minutes=contract.step_minutes), timedelta(seconds=contract.phase_seconds)
        return cls(since, until, now, step, phase)

    def times(self) -> list[datetime]:
        """Return all times that are wanted."""
        first = self.since + (-self.offset(self.since)) % self.step
        return [first + number * self.step for number in range((self.until - first) // self.step + 1)]

    def offset(self, moment: datetime) -> timedelta:
        """Return how long after a time of the axis a moment is: nothing, or less than a step."""
        return (moment - datetime(1970, 1, 1, tzinfo=UTC) - self.phase) % self.step

    def snapped(self, moment: datetime) -> datetime:
        """Return the time of the axis that a moment jitters about, the moment itself where it is further from all."""
        offset = self.offset(moment)
        nearest = offset if 2 * offset < self.step else offset - self.step
        return moment - nearest if abs(nearest.total_seconds()) < tolerance(self.step.total_seconds()) else moment

    def covers(self, moment: datetime) -> bool:
        """Return whether a moment is in the window."""
        return self.since <= moment <= self.until

    def is_future(self, moment: datetime) -> bool:
        """Return whether a moment is later than a clock that is somewhat slow could explain."""
        return moment > self.now + self.step


@dataclass
class FetchReport:
    """Outcome of one fetch."""

    added: list[datetime] = field(default_factory=list)
    duplicates: int = 0  # frames that another file had brought before
    waiting: list[str] = field(default_factory=list)  # half-written, unreadable or absent: left for later
    refused: list[str] = field(default_factory=list)  # candidates and frames refused, and why; reported once
    stale: list[datetime] = field(default_factory=list)  # frames with all values of the step before, and not constant
    misfits: list[str] = field(default_factory=list, compare=False)  # candidates of another grid or other units
    examined: list[Candidate] = field(default_factory=list, compare=False)  # not yet in the index
    aside: list[Candidate] = field(default_factory=list, compare=False)  # not yet in the index: not opened again
    aside_frames: dict[str, str] = field(default_factory=dict, compare=False)  # of a Zarr store: digest -> reason
    impossible: dict[str, list[str]] = field(default_factory=dict, compare=False)  # variable -> frames with such values

    def wait(self, candidate: Candidate, error: Exception) -> None:
        """Leave a candidate that cannot be read for later."""
        ordinary = isinstance(error, InputError | OSError | UnavailableError)
        reason = one_line(error) if ordinary else f"cannot be read ({type(error).__name__}: {one_line(error)})"
        message = reason if reason.startswith(candidate.key) else f"{candidate.key}: {reason}"
        self.waiting.append(message)
        if candidate.version != NO_VERSION and isinstance(error, UnavailableError):
            return
        previous = candidate.previous
        again = previous is not None and previous.state == "waiting" and previous.version == candidate.version
        tries = 1 + (previous.tries if previous and again else 0)
        times = (candidate.expected,) if candidate.expected else ()
        self.examined.append(replace(candidate, state="waiting", detail=message, tries=tries, times=times))
        if candidate.version == NO_VERSION:
            self.refused += (
                [f"{message}: not read at {TRIES} looks, asked again at every one"] if tries == TRIES else []
            )
        elif tries == TRIES and candidate.version[0]:
            self.refused.append(f"{message}: set aside after {TRIES} looks, until it changes")
            self.aside.append(self.examined[-1])

    def leave_aside(self, candidate: Candidate, reason: str) -> None:
        """Leave a candidate alone whose bytes were set aside under this name or another."""
        message = f"{candidate.key}: has the bytes of a file that was set aside: {reason}"
        self.waiting.append(message)
        self.refused.append(message)
        times = (candidate.expected,) if candidate.expected else ()
        self.examined.append(replace(candidate, state="waiting", detail=message, tries=TRIES, times=times))

    def too_large(self, candidate: Candidate) -> None:
        """Refuse a candidate that is too large to be downloaded; reported once."""
        self.waiting.append(candidate.detail)
        if candidate.previous is None or candidate.previous.state != "refused":
            self.refused.append(candidate.detail)
        self.examined.append(candidate)

    def refuse(self, candidate: Candidate, message: str, times: Sequence[datetime]) -> None:
        """Refuse a candidate that does not fit the model, until it changes."""
        self.misfits.append(message)
        self.refused.append(message)
        if candidate.version != NO_VERSION:
            self.examined.append(replace(candidate, state="refused", detail=message, times=tuple(times)))

    def refuse_frames(self, key: str, times: Sequence[datetime], reason: str) -> None:
        """Refuse frames of a candidate."""
        if times:
            more = f" and {len(times) - 1} more" if len(times) > 1 else ""
            self.refused.append(f"{key}: time {iso(times[0])}{more}: {reason}")

    def note_impossible(self, key: str, times: Sequence[datetime], refused: Mapping[str, np.ndarray]) -> None:
        """Keep which frames have values that are none, by variable `(time,)` their number: they are missing cells."""
        for name, counts in refused.items():
            self.impossible.setdefault(name, []).extend(
                f"{key}: time {iso(time)}: {count} of {name}"
                for time, count in zip(times, counts, strict=True)
                if count
            )

    def flagged(self) -> list[str]:
        """Return a line for each variable with values that are none in frames that were taken."""
        reason = "infinite, 1e30 or beyond, or outside the range that the file declares: taken as missing cells"
        return [
            f"{frames[0]}" + (f" and more in {len(frames) - 1} other frames" if len(frames) > 1 else "") + f" {reason}"
            for frames in self.impossible.values()
            if frames
        ]

    def compare_time(self, candidate: Candidate, times: Sequence[datetime]) -> None:
        """Report a file without the time that its address was made for; the server may replace it."""
        if candidate.expected and candidate.expected not in times:
            first = iso(times[0]) if times else "no time"
            self.waiting.append(f"{candidate.key}: holds {first}, expected {iso(candidate.expected)}: left for later")


@dataclass
class OpenSegment:
    """An open candidate with the frames that are wanted of it."""

    candidate: Candidate
    source: Segment  # reads its frames
    target: Target
    times: list[datetime]
    dropped: set[datetime] = field(default_factory=set)  # times that are never taken from it
    wanted: list[int] = field(default_factory=list)  # numbers of frames
    failed: bool = False

    def examined(self) -> Candidate:
        """Return the candidate as later polls shall know it."""
        dropped = frozenset() if self.candidate.version == NO_VERSION else frozenset(self.dropped)
        return replace(self.candidate, state="known", times=tuple(self.times), dropped=dropped)


class Segments:
    """The candidates of one poll that are new or have frames that are wanted by now, opened one by one."""

    def __init__(
        self,
        options: SourceOptions,
        contract: DataSignature,
        window: Window,
        known: Mapping[str, Candidate],
        stored: set[datetime],
        report: FetchReport,
        aside: Mapping[str, Aside],
    ) -> None:
        self._aside = aside
        self._options, self._contract, self._window = options, contract, window
        self._known, self._stored, self._report = known, stored, report

    def simulated(self) -> list[OpenSegment]:
        """Return the simulated events with wanted frames; raise `InputError` for those the model was not made for."""
        source = open_source(self._options)
        if not isinstance(source, StormsSource):
            raise InputError(f"source.kind is '{self._options.kind}': it has no live feed, choose another live.source")
        where = f"the source ({self._options.kind})"
        target = target_of(source.grid(), self._options, where)
        if difference := self._difference(target):
            raise InputError(f"{where}: {difference}")
        segments = []
        for event in source.during(to_numpy(self._window.since), to_numpy(self._window.until)):
            segment = OpenSegment(Candidate(event.name, NO_VERSION), event, target, moments(event.times))
            segment.wanted = self._wanted(segment.times, self._stored)
            segments += [segment] if segment.wanted else []
        return segments

    def open(self, feed: Feed, candidate: Candidate) -> OpenSegment | None:
        """Return a candidate's segment, None where nothing of it is wanted: then that is reported and remembered."""
        if candidate.version != NO_VERSION and self._is_settled(candidate):
            return None
        segment = self._opened(feed, candidate)
        if segment is None:
            return None
        previous = candidate.previous
        usable = previous and (previous.state == "known" or candidate.version == NO_VERSION)
        same = previous if usable and candidate.is_unchanged() else None
        segment.dropped = self._off_axis(candidate, segment.times) | (same.dropped if same else set())
        segment.wanted = self._wanted(segment.times, segment.dropped | (self._stored if same else set()))
        self._report.compare_time(candidate, segment.times)
        if segment.wanted:
            return segment
        self._report.examined.append(segment.examined())
        return None

    def _is_settled(self, candidate: Candidate) -> bool:
        """Return whether a candidate needs no other look; report again that it waits or does not fit."""
        previous = candidate.previous
        if previous and previous.state == "waiting":
            settled = previous.version == candidate.version and previous.tries >= TRIES
            self._report.waiting += [previous.detail] if settled else []
            return settled
        if previous is None or not candidate.is_unchanged():
            return False
        if previous.state == "refused":
            self._report.misfits += [previous.detail] if any(map(self._window.covers, previous.times)) else []
            return True
        settled = not self._wanted(previous.times, self._stored | previous.dropped)
        if settled:
            self._report.compare_time(candidate, previous.times)
        return settled

    def _wanted(self, times: Sequence[datetime], without: set[datetime]) -> list[int]:
        return [number for number, time in enumerate(times) if self._window.covers(time) and time not in without]

    def _opened(self, feed: Feed, candidate: Candidate) -> OpenSegment | None:
        """Return the segment of a candidate that can be read and fits the model, else report it."""
        try:
            if candidate.version != NO_VERSION:
                Path(candidate.path).open("rb").close()
        except OSError as error:  # says nothing of its content: tried at every poll
            self._report.waiting.append(f"{candidate.key}: {(error.strerror or 'cannot be opened').lower()}")
            return None
        if reason := self._aside_reason(candidate):
            self._report.leave_aside(candidate, reason)
            return None
        try:
            if candidate.version != NO_VERSION and not candidate.version[0]:
                raise InputError("empty file: left for later")
            source = open_source(self._options.model_copy(update={"path": candidate.path}))
            first, grid = feed.read(candidate, lambda: (source.segments()[0], source.grid()), opening=True)
            if first.times.size > MOST_TIMES:
                raise InputError(
                    f"declares {first.times.size} times, expected {MOST_TIMES} at most: take it out of the feed"
                )
            times = [self._window.snapped(time) for time in moments(first.times)]
        except Exception as error:  # a broken file may raise anything
            self._report.wait(candidate, error)
            return None
        try:
            target = target_of(grid, self._options, candidate.key)
            if not (difference := self._difference(target)):
                return OpenSegment(candidate, first, target, times)
            message = f"{candidate.key}: {difference}"
        except InputError as error:  # the grid is too small for the crop
            message = one_line(error)
        self._report.refuse(candidate, message, times)
        return None

    def _aside_reason(self, candidate: Candidate) -> str | None:
        """Return why a file with these bytes was set aside, None where none was."""
        size = candidate.version[0]
        if candidate.version == NO_VERSION or not any(bytes_ == size for bytes_, _ in self._aside.values()):
            return None
        known = self._aside.get(file_sha256(Path(candidate.path)))
        return known[1] if known else None

    def _difference(self, target: Target) -> str | None:
        """Return the difference between a grid and that of the training data, and what to do about it."""
        contract = self._contract
        step, phase = from_minutes(contract.step_minutes), np.datetime64(contract.phase_seconds, "s")
        difference = compare_signatures(contract, signature_of(target.grid, list(contract.units), step, phase))
        return difference and (
            f"{difference} as in the training data: remove the file, correct live.source (path, crop, coarsen, "
            "variables) or train on such data"
        )

    def _off_axis(self, candidate: Candidate, times: Sequence[datetime]) -> set[datetime]:
        """Return the times between the steps of the time axis; report new ones unless the feed has a finer step."""
        reported = set(candidate.previous.times if candidate.previous else ())
        new = [time for time in times if time not in reported]
        off_axis = {time for time in times if self._window.offset(time)}
        odd = [time for time in new if time in off_axis and self._window.covers(time)]
        minutes = self._contract.step_minutes
        self._report.refuse_frames(
            candidate.key,
            [time for time in odd if not self._is_of_finer_feed(time, times)],
            f"not on the model's axis of {minutes:g} minutes: correct the file, or set source.step_minutes to "
            f"{minutes:g} if the feed has a finer step",
        )
        future = [time for time in new if self._window.is_future(time)]
        reason = f"in the future, it is {iso(self._window.now)}: correct the file or the clock"
        self._report.refuse_frames(candidate.key, future, reason)
        return off_axis

    def _is_of_finer_feed(self, time: datetime, others: Iterable[datetime]) -> bool:
        """Return whether a time between the steps is one of the feed's own finer time axis."""
        if self._options.step_minutes is None:
            return False
        known = {moment for candidate in self._known.values() for moment in candidate.times}
        axis = sorted({*filter(self._window.covers, known), *others})
        steps = Counter(after - before for before, after in pairwise(axis))
        offset = self._window.offset(time)
        feed_step = steps.most_common(1)[0][0] if steps else offset
        return not offset % min(feed_step, self._window.step)


def moments(times: np.ndarray) -> list[datetime]:
    """Return the times of a segment in whole seconds, rounded as an ingest rounds them."""
    return [from_numpy(time) for time in times.astype("datetime64[ns]") + np.timedelta64(500, "ms")]
