"""`fieldcast serve`: one process that wakes by a cron expression and keeps the model loaded.

It only wakes: what is due stands in the ledger, so that a late, missed or doubled waking changes nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apscheduler.schedulers.background import BackgroundScheduler  # type: ignore[import-untyped]

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live import post_cycle as afterwards
from fieldcast.pipeline.live.archive.ledger import Ledger
from fieldcast.pipeline.live.archive.publish import LEDGER
from fieldcast.pipeline.live.clock import Clock, SystemClock, iso
from fieldcast.pipeline.live.context import LIVE, Station
from fieldcast.pipeline.live.monitoring import status
from fieldcast.pipeline.live.outcomes import Outcome, Result
from fieldcast.pipeline.live.schedule import trigger_of

log = logging.getLogger(__name__)
GRACE_SECONDS = 8.0  # that a running cycle gets to end after a signal; ten in all
WAIT_SECONDS = 10.0  # between two looks for frames
MISFIRE_SECONDS = 30  # with misfire: skip, a waking later than this is dropped


class Server:
    """The schedule of one project, until it is told to stop."""

    def __init__(self, params: Params, folder: Path = LIVE, clock: Clock | None = None) -> None:
        self.params, self.folder, self.clock = params, folder, clock or SystemClock()
        self.trigger = trigger_of(params.live.schedule)
        self.stopping = threading.Event()
        self._busy = threading.Lock()
        self._last: tuple[datetime, float] | None = None  # wall clock and seconds at the last waking

    def tick(self) -> list[Outcome]:
        """Do what is due and return what became of it; what goes wrong is logged, and the next waking tries again."""
        with self._busy:
            if self._jumped():
                return []
            try:
                return attend(self.params, self.folder, self.clock)
            except Exception as error:
                log.error("%s", error, exc_info=not isinstance(error, InputError | OSError))
                return []

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT; return the exit code that says which."""
        received: list[int] = []

        def stop(number: int, _: object) -> None:
            received.append(number)
            self.stopping.set()

        before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
        rules = self.params.live.schedule
        grace = None if rules.misfire == "run" else MISFIRE_SECONDS
        scheduler = BackgroundScheduler(timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1})
        scheduler.add_job(self.tick, self.trigger, misfire_grace_time=grace)
        scheduler.add_job(self.tick)  # at once: what came due while nobody served
        scheduler.start()
        log.info("serving: wakes at '%s' (%s); next at %s", rules.cron, rules.time_zone, self.next_waking())
        self.stopping.wait()
        scheduler.pause()
        ended = self._busy.acquire(timeout=GRACE_SECONDS)
        scheduler.shutdown(wait=False)
        for number, handler in before.items():
            signal.signal(number, handler)
        code = 128 + (received[0] if received else 0)
        if not ended:
            log.warning("stopped within a cycle; the next start makes it again")
            os._exit(code)
        log.info("stopped")
        return code

    def next_waking(self) -> str:
        """Return the next time at which the schedule wakes, UTC."""
        found: datetime = self.trigger.get_next_fire_time(None, self.clock.now())
        return iso(found)

    def _jumped(self) -> bool:
        """Return whether the wall clock has run otherwise than time since the last waking: a jump is believed twice."""
        now, seconds = self.clock.now(), self.clock.monotonic()
        last, self._last = self._last, (now, seconds)
        if last is None:
            return False
        off = (now - last[0]) - timedelta(seconds=seconds - last[1])
        if abs(off) < timedelta(minutes=1):
            return False
        log.warning("clock_jump: the clock moved by %s more than time did; this waking is left out", off)
        with Ledger(self.folder / LEDGER) as ledger, ledger.writing():
            ledger.note("clock_jump", now, str(off))
        return True


Work = Callable[[Station], list[Outcome]]


def attend(params: Params, folder: Path, clock: Clock, work: Work = cycle.run) -> list[Outcome]:
    """Do `work`, then tell the tracker and write metrics and page; return what became of the cycles."""
    outcomes = work(Station(params, folder, clock))
    for it in outcomes:
        log.log(logging.WARNING if it.result is Result.FAILED else logging.INFO, "%s", describe(it))
    afterwards.sync(params.track.experiment, folder, clock)
    found = status.look(params, folder, clock)
    status.write_metrics(found, folder / "metrics.prom")
    if outcomes:
        status.write_page(found, folder, folder / "status.html")
    return outcomes


def attend_waiting(params: Params, folder: Path, clock: Clock, work: Work = cycle.run) -> list[Outcome]:
    """Do the same until none of the cycles that wait for frames at the first look waits any more.

    A deadline ends the wait for each. The outcomes are those of the last look and of all that ended before it.
    """
    outcomes = {it.init_time: it for it in attend(params, folder, clock, work)}
    first = set(outcomes)
    while any(outcomes[it].result is Result.NO_DATA_YET for it in first):
        clock.sleep(WAIT_SECONDS)
        outcomes |= {it.init_time: it for it in attend(params, folder, clock, work)}
    return [outcomes[it] for it in sorted(outcomes)]


def describe(outcome: Outcome) -> str:
    """Return an outcome in one line."""
    words = [iso(outcome.init_time), str(outcome.result).replace("_", " ")]
    words += [f"by {outcome.model}"] if outcome.path and outcome.model else []
    words += [f"({outcome.reason})"] if outcome.reason else []
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in outcome.timings.items())
    return " ".join(words) + (f": {seconds}" if seconds else "")


def announce(outcome: Outcome) -> str:
    """Return what would become of a cycle in one line."""
    words = {
        Result.DONE: f"would be forecast by {outcome.model}",
        Result.DEGRADED: "would be forecast",
        Result.ALREADY_DONE: "is done",
        Result.SKIPPED: "would be skipped",
        Result.NO_DATA_YET: "would wait",
    }
    return f"{iso(outcome.init_time)} {words[outcome.result]}" + (f" ({outcome.reason})" if outcome.reason else "")
