"""Parts of a feed: opened by the source they are for, held against the model's contract, and their times judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np

from fieldcast.pipeline.config.sources import SourceOptions
from fieldcast.pipeline.datasets.signature import DataSignature, compare_signatures, signature_of
from fieldcast.pipeline.datasets.times import from_numpy, to_numpy
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.feed.index import NO_STATE, Seen
from fieldcast.pipeline.live.feed.poll import Feed, Offer, UnavailableError
from fieldcast.pipeline.sources import Segment, open_source
from fieldcast.pipeline.sources.files import one_line
from fieldcast.pipeline.sources.storms import StormsSource
from fieldcast.pipeline.sources.target import Target, target_of

TRIES = 3  # of a file that cannot be read and does not change: the clocks of file systems are coarse


@dataclass(frozen=True)
class Window:
    """The times that are wanted: those of the model's axis from `since` to `until`; `now` tells what is the future."""

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
        """Return how long after a time of the axis a moment lies: nothing, or less than a step."""
        return (moment - datetime(1970, 1, 1, tzinfo=UTC) - self.phase) % self.step

    def covers(self, moment: datetime) -> bool:
        """Return whether a moment is neither too old nor too young."""
        return self.since <= moment <= self.until

    def is_future(self, moment: datetime) -> bool:
        """Return whether a moment is later than a clock that is somewhat slow could explain."""
        return moment > self.now + self.step


@dataclass
class Report:
    """What a look at the feed has found so far."""

    waiting: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)  # files of another grid or other units
    notes: list[Seen] = field(default_factory=list)  # not yet in the index

    def wait(self, offer: Offer, known: Seen | None, error: Exception) -> None:
        """Leave a file that cannot be read for later."""
        expectable = isinstance(error, InputError | OSError | UnavailableError)
        reason = one_line(error) if expectable else f"cannot be read ({type(error).__name__}: {one_line(error)})"
        message = reason if reason.startswith(offer.key) else f"{offer.key}: {reason}"
        self.waiting.append(message)
        if offer.state == NO_STATE or isinstance(error, UnavailableError):
            return
        again = known is not None and known.verdict == "waiting" and known.state == offer.state
        tries = known.tries + 1 if known and again else 1
        times = (offer.expected,) if offer.expected else ()
        self.notes.append(Seen(offer.key, offer.state, "waiting", message, tries, times, validators=offer.validators))

    def misfit(self, offer: Offer, message: str, times: Sequence[datetime]) -> None:
        """Refuse a file that does not fit the model, until it changes."""
        self.misfits.append(message)
        self.refused.append(message)
        if offer.state != NO_STATE:
            note = Seen(offer.key, offer.state, "refused", message, times=tuple(times), validators=offer.validators)
            self.notes.append(note)

    def refuse(self, key: str, times: Sequence[datetime], reason: str) -> None:
        """Refuse frames of a file."""
        if times:
            more = f" and {len(times) - 1} more" if len(times) > 1 else ""
            self.refused.append(f"{key}: time {iso(times[0])}{more}: {reason}")

    def other_time(self, offer: Offer, times: Sequence[datetime]) -> None:
        """Say that a file is not of the time that its address was made for; the server may mend that."""
        if offer.expected and offer.expected not in times:
            found = iso(times[0]) if times else "no time"
            self.waiting.append(f"{offer.key}: holds {found}, expected {iso(offer.expected)}: left for later")


@dataclass
class Found:
    """An open part of the feed with the frames that are wanted of it."""

    key: str
    offer: Offer | None  # None for a simulated event
    part: Segment
    target: Target
    times: list[datetime]
    wanted: list[int]  # numbers of frames
    dropped: set[datetime]  # times that will not be taken from it, now or later
    failed: bool = False

    def note(self) -> Seen | None:
        """Return what to remember of it."""
        if self.offer is None or self.failed:
            return None
        dropped = frozenset() if self.offer.state == NO_STATE else frozenset(self.dropped)
        return Seen(
            self.key,
            self.offer.state,
            "known",
            times=tuple(self.times),
            dropped=dropped,
            validators=self.offer.validators,
        )


class Opener:
    """Opens what a feed offers, as far as it is new or has frames that are wanted by now."""

    def __init__(
        self,
        options: SourceOptions,
        contract: DataSignature,
        window: Window,
        seen: Mapping[str, Seen],
        stored: set[datetime],
        report: Report,
    ) -> None:
        self._options, self._contract, self._window = options, contract, window
        self._seen, self._stored, self._report = seen, stored, report

    def simulated(self) -> list[Found]:
        """Return the simulated events with wanted frames; raise `InputError` for those the model was not made for."""
        source = open_source(self._options)
        if not isinstance(source, StormsSource):
            raise InputError(f"source.kind is '{self._options.kind}': it has no live feed, choose another live.source")
        where = f"the source ({self._options.kind})"
        target = target_of(source.grid(), self._options, where)
        if difference := self._difference(target):
            raise InputError(f"{where}: {difference}")
        founds = []
        for part in source.during(to_numpy(self._window.since), to_numpy(self._window.until)):
            times = moments(part.times)
            found = Found(part.name, None, part, target, times, self._wanted(times, self._stored), set())
            founds += [found] if found.wanted else []
        return founds

    def open(self, feed: Feed, offer: Offer) -> Found | None:
        """Return the open part, None where it has nothing that is wanted: then that is reported and remembered."""
        known = self._seen.get(offer.key)
        unchanged = known is not None and known.verdict == "known" and known.state[:2] == offer.state[:2]
        if known and offer.state != NO_STATE and self._is_settled(offer, known):
            return None
        opened = self._opened(feed, offer, known)
        if opened is None:
            return None
        part, target, times = opened
        dropped = set(known.dropped) if known and unchanged else set()
        found = Found(offer.key, offer, part, target, times, [], dropped | self._judged(offer.key, times, known))
        found.wanted = self._wanted(times, found.dropped | (self._stored if unchanged else set()))
        self._report.other_time(offer, times)
        if found.wanted:
            return found
        note = found.note()
        self._report.notes += [note] if note else []
        return None

    def _is_settled(self, offer: Offer, known: Seen) -> bool:
        """Return whether a known file needs no other look; report again what waits and what does not fit."""
        if known.verdict == "waiting":
            settled = known.state == offer.state and known.tries >= TRIES
            self._report.waiting += [known.detail] if settled else []
            return settled
        if known.state[:2] != offer.state[:2]:
            return False
        if known.verdict == "refused":
            self._report.misfits += [known.detail] if any(map(self._window.covers, known.times)) else []
            return True
        settled = not self._wanted(known.times, self._stored | known.dropped)
        if settled:
            self._report.other_time(offer, known.times)
        return settled

    def _wanted(self, times: Sequence[datetime], without: set[datetime] | frozenset[datetime]) -> list[int]:
        return [number for number, time in enumerate(times) if self._window.covers(time) and time not in without]

    def _opened(self, feed: Feed, offer: Offer, known: Seen | None) -> tuple[Segment, Target, list[datetime]] | None:
        """Return part, target and times of a file that can be read and fits the model, else report it."""
        if offer.state != NO_STATE:
            try:
                with Path(offer.path).open("rb"):
                    pass
            except OSError as error:  # says nothing of its content: tried at every look
                self._report.waiting.append(f"{offer.key}: {(error.strerror or 'cannot be opened').lower()}")
                return None
        try:
            if offer.state != NO_STATE and not offer.state[0]:
                raise InputError("empty file: left for later")
            source = open_source(self._options.model_copy(update={"path": offer.path}))
            part, grid = feed.read(offer, lambda: (source.segments()[0], source.grid()))
            times = moments(part.times)
        except Exception as error:  # a broken file may raise anything
            self._report.wait(offer, known, error)
            return None
        try:
            target = target_of(grid, self._options, offer.key)
            difference = self._difference(target)
        except InputError as error:  # the grid is too small for the crop
            self._report.misfit(offer, one_line(error), times)
            return None
        if difference:
            self._report.misfit(offer, f"{offer.key}: {difference}", times)
            return None
        return part, target, times

    def _difference(self, target: Target) -> str | None:
        """Return how a grid differs from what the model was trained on, and what to do about it."""
        contract = self._contract
        step, phase = np.timedelta64(contract.step_minutes, "m"), np.datetime64(contract.phase_seconds, "s")
        difference = compare_signatures(contract, signature_of(target.grid, list(contract.units), step, phase))
        return difference and (
            f"{difference} as in the training data: remove the file, correct live.source (path, crop, coarsen, "
            "variables) or train on such data"
        )

    def _judged(self, key: str, times: Sequence[datetime], known: Seen | None) -> set[datetime]:
        """Return the times between the steps of the axis; report them unless that is how the feed is."""
        told = set(known.times) if known else set()
        between = {time for time in times if self._window.offset(time)}
        new = [time for time in times if time in between - told and self._window.covers(time)]
        odd = [time for time in new if not self._is_of_finer_feed(time, times)]
        minutes = self._contract.step_minutes
        reason = (
            f"not on the model's axis of {minutes} minutes: mend the file, or set source.step_minutes to {minutes} "
            "if the feed has a finer step"
        )
        self._report.refuse(key, odd, reason)
        future = [time for time in times if time not in told and self._window.is_future(time)]
        self._report.refuse(key, future, f"in the future, it is {iso(self._window.now)}: mend the file or the clock")
        return between

    def _is_of_finer_feed(self, time: datetime, others: Sequence[datetime]) -> bool:
        """Return whether a time between the steps lies on the feed's own finer axis."""
        if self._options.step_minutes is None:
            return False
        known = {other for seen in self._seen.values() for other in seen.times if self._window.covers(other)}
        steps = Counter(after - before for before, after in pairwise(sorted(known | set(others))))
        offset = self._window.offset(time)
        own = steps.most_common(1)[0][0] if steps else offset
        return not offset % min(own, self._window.step)


def moments(times: np.ndarray) -> list[datetime]:
    """Return the times of a part in whole seconds, rounded as an ingest rounds them."""
    return [from_numpy(time) for time in times.astype("datetime64[ns]") + np.timedelta64(500, "ms")]
