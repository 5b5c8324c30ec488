"""A project that issues forecasts: its deployed model, its schedule of init times, its feed and its ledger."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.datasets.atomic import free_bytes, make_folder
from fieldcast.pipeline.live import timekeeping
from fieldcast.pipeline.live.archive import recovery
from fieldcast.pipeline.live.archive.durable import locked
from fieldcast.pipeline.live.archive.exports import check_kinds
from fieldcast.pipeline.live.archive.ledger import LEDGER, OPEN, Cycle, Ledger, State
from fieldcast.pipeline.live.archive.products import check_products
from fieldcast.pipeline.live.clock import Clock, SystemClock, iso, parse
from fieldcast.pipeline.live.deployed_model import DeployedModel, resolve_model
from fieldcast.pipeline.live.feed.limits import FeedRules, limits_of
from fieldcast.pipeline.live.feed.store import LiveObservations
from fieldcast.pipeline.live.places.forecaster import PlaceForecaster
from fieldcast.pipeline.live.schedule import CycleSchedule, Span, merge_spans
from fieldcast.pipeline.live.timekeeping import FeedTimes, Look

log = logging.getLogger(__name__)
LIVE = Path("data/live")
LEDGER_ROOM = 64e6  # bytes
PLANNED = "planned_until"  # the fact that holds the last init time of the schedule
PLANNED_AT_ONCE = 10_000  # rows at one look: a month at five minutes, some seconds
LONGEST_DELAY = timedelta(days=30)  # of a feed, that is looked through for its newest frame
OUT_OF_SERVICE = "out of service for longer than live.backfill_hours"


@dataclass
class LiveContext:
    """Everything that a cycle needs, built from the parameters; raise `InputError` where they do not fit."""

    params: Params
    folder: Path = LIVE
    clock: Clock = field(default_factory=SystemClock)
    root: Path = Path()
    key: str = ""  # of the parameters, by which a rest is known to be theirs; without one there is none

    def __post_init__(self) -> None:
        check_kinds(self.params.live.copies, self.params.verify)
        self.model: DeployedModel = resolve_model(self.params, self.folder, self.root)
        config = self.model.config
        check_products(self.params.live.products, config)
        places = self.params.live.places
        self.places = None if places is None else PlaceForecaster.read(self.root / places, self.folder, config)
        every = self.params.live.every_minutes
        phase = config.signature.phase_seconds
        self.schedule = CycleSchedule.of(config.step_minutes, phase, every, config.history, config.horizon)
        source = self.params.live.source or self.params.source
        feed = self.params.live.feed
        values = limits_of(config.channels, self.params.live.limits)
        rules = FeedRules(values, round(feed.max_megabytes * 1e6), feed.max_seconds)
        folder = self.folder / "observations"
        self.observations = LiveObservations(folder, source, self.params.ingest, config.signature, self.clock, rules)

    @contextmanager
    def writing(self) -> Iterator[Ledger]:
        """Yield the ledger to the one process that may write, after recovering what an earlier one left behind."""
        make_folder(self.folder)
        with locked(self.folder / "lock", self.params.live.lock_wait_seconds, self.clock):
            if free_bytes(self.folder) < LEDGER_ROOM:
                recovery.sweep(self.folder)  # first: even the ledger needs room
            with Ledger(self.folder / LEDGER) as ledger:
                ledger.take_token(f"{socket.gethostname()}:{os.getpid()}", self.clock.now())
                ledger.end_rest()
                recovery.recover(self.folder, ledger, self.params.live.max_attempts, self.clock.now())
                yield ledger
                recovery.settle(self.folder, ledger)

    @contextmanager
    def reading(self) -> Iterator[Ledger]:
        """Yield the ledger without a change on disk; an empty one in memory before the first cycle."""
        path = self.folder / LEDGER
        with Ledger(path, read_only=True) if path.is_file() else Ledger(path, copy=True) as ledger:
            yield ledger

    def new_cycle(self, init_time: datetime) -> Cycle:
        """Return the first row of an init time."""
        deadline = init_time + timedelta(minutes=self.params.live.late_data.deadline_minutes)
        return Cycle(init_time, due_at=init_time, deadline_at=deadline)

    def plan(self, ledger: Ledger, now: datetime) -> list[datetime]:
        """Enter every init time that has come up since the last plan; return all that are due, oldest first.

        The first plan has the newest init time alone. After a time out of service those older than
        `live.backfill_hours` are skipped, and of very many only the newest have a row. Raise `BusyError` for a clock
        that machine and feed contradict.
        """
        last = timekeeping.last_believed(ledger)
        look = self._believed_look(ledger, last, now, dry=False)
        with ledger.writing(fenced=True):
            timekeeping.accept(ledger, last, look)
            new = self._new_init_times(ledger, last, look)
            if old := new[:-PLANNED_AT_ONCE]:
                span = f"{len(old)} init times from {iso(old[0])} to {iso(old[-1])}"
                ledger.note("out_of_service", now, f"{span} get no rows: {OUT_OF_SERVICE}")
            for init_time in new[-PLANNED_AT_ONCE:]:
                if ledger.cycle(init_time) is None:
                    self._enter(ledger, self.new_cycle(init_time), now)
            ledger.set_fact(PLANNED, iso(self.schedule.floor(now)))
        return _open(ledger, now)

    def due(self, ledger: Ledger, now: datetime) -> list[datetime]:
        """Return the init times that `plan` would return, entering none."""
        last = timekeeping.last_believed(ledger)
        look = self._believed_look(ledger, last, now, dry=True)
        new = [it for it in self._new_init_times(ledger, last, look) if not self._too_old(it, now)]
        return sorted({*_open(ledger, now), *(it for it in new if ledger.cycle(it) is None)})

    def fetch_frames(self, ledger: Ledger, init_times: Sequence[datetime], now: datetime) -> dict[str, float]:
        """Fetch the frames that these cycles and pending verifications need; return the seconds that it took."""
        before = time.perf_counter()
        for since, until in self._needed_spans(ledger, init_times, now):
            self._fetch(ledger, since, until, now)
        return {"observations": time.perf_counter() - before}

    def _needed_spans(self, ledger: Ledger, init_times: Sequence[datetime], now: datetime) -> list[Span]:
        histories = [(self.schedule.history_times(it)[0], min(it, now)) for it in init_times]
        unverified = [cycle.init_time for cycle in ledger.unverified()]
        observed = [(it, min(self.schedule.valid_times(it)[-1], now)) for it in unverified]
        return merge_spans(histories + observed)

    def _believed_look(self, ledger: Ledger, last: Look | None, now: datetime, *, dry: bool) -> Look:
        """Return this look at the clock, once it is believed; else raise `BusyError`."""
        look = replace(Look.of(self.clock), at=now)
        if last is None or look.goes_on(last):
            return look
        feed = self._feed_at(ledger, last, now, dry=dry)
        if not feed.confirms(look, last) and not (feed.newest is None and timekeeping.is_steady(ledger, look)):
            timekeeping.reject(ledger, last, look, feed.newest, note=not dry)
        return look

    def _feed_at(self, ledger: Ledger, last: Look, now: datetime, *, dry: bool) -> FeedTimes:
        """Return the newest frame before and after a fetch of all that can be expected by now."""
        deadline = timedelta(minutes=self.params.live.late_data.deadline_minutes)
        patience = deadline + self.schedule.history * self.schedule.step
        if self.observations.is_simulated:
            return FeedTimes(None, None, patience)
        before = self.observations.newest()
        behind = min(max(last.at - before, timedelta()), LONGEST_DELAY) if before else timedelta()
        since = self.schedule.history_times(self.schedule.floor(now))[0] - behind
        if dry:
            newest = max([*([before] if before else []), *self.observations.peek(since, now)], default=None)
        else:
            self._fetch(ledger, since, now, last.at)
            newest = self.observations.newest()
        return FeedTimes(before, newest, patience)

    def _fetch(self, ledger: Ledger, since: datetime, until: datetime, at: datetime) -> None:
        scan = self.observations.fetch_frames(since, until)
        with ledger.writing(fenced=True):
            stale = [iso(time) for time in scan.stale]
            for event, lines in (("refused", scan.refused), ("impossible", scan.flagged()), ("stale_input", stale)):
                for line in lines:
                    log.warning("%s: %s", event, line)
                    ledger.note(event, at, line)

    def _new_init_times(self, ledger: Ledger, last: Look | None, look: Look) -> list[datetime]:
        """Return the init times since the last plan; where that was ahead of the clock, since it was right."""
        planned, now = ledger.fact(PLANNED), look.at
        if not planned:
            return [self.schedule.floor(now)]
        if parse(planned) <= now:
            return self.schedule.after(parse(planned), now)
        passed = look.since(last) if last else None
        since = ledger.newest_init_time(now) or now - max(passed or timedelta(), self.schedule.every)
        return self.schedule.after(since, now)

    def _too_old(self, init_time: datetime, now: datetime) -> bool:
        return init_time < now - timedelta(hours=self.params.live.backfill_hours)

    def _enter(self, ledger: Ledger, cycle: Cycle, now: datetime) -> None:
        if self._too_old(cycle.init_time, now):
            ledger.put(replace(cycle, state=State.SKIPPED, ended_at=now, reason=OUT_OF_SERVICE), "skipped", now)
        else:
            ledger.put(cycle, "due", now)


def _open(ledger: Ledger, now: datetime) -> list[datetime]:
    return [cycle.init_time for cycle in ledger.cycles(until=now, states=OPEN)]
