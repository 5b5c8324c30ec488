"""The resident form, `fieldcast serve`: one process that wakes by a cron expression and keeps the model loaded.

The ledger decides what is due, so that a late, missed or doubled wakeup changes nothing.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apscheduler.schedulers.background import BackgroundScheduler  # type: ignore[import-untyped]

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.errors import BusyError, UserError
from fieldcast.pipeline.live import waking
from fieldcast.pipeline.live.clock import Clock, SystemClock, iso
from fieldcast.pipeline.live.context import LIVE
from fieldcast.pipeline.live.outcomes import Outcome
from fieldcast.pipeline.live.schedule import cron_trigger

log = logging.getLogger(__name__)
GRACE_SECONDS = 8.0  # that a running cycle gets to end after a signal; ten in all
WATCH_SECONDS = 60.0  # between two looks at a clock that may have been set, and to the next try of a wakeup in doubt
CLOCK_SET = timedelta(minutes=1)
WAKEUP = "wakeup"  # the job of the schedule
MISFIRE_SECONDS = 30  # with misfire: skip, a wakeup later than this is dropped


class Server:
    """The schedule of one project, served until a signal stops it."""

    def __init__(self, params: Params, folder: Path = LIVE, clock: Clock | None = None, key: str = "") -> None:
        self.params, self.folder, self.clock, self.key = params, folder, clock or SystemClock(), key
        self.trigger = cron_trigger(params.live.schedule)
        self.stopping = threading.Event()
        self._busy = threading.Lock()
        self.scheduler = BackgroundScheduler(timezone=UTC, job_defaults={"coalesce": True, "max_instances": 1})

    def tick(self) -> list[Outcome]:
        """Run what is due and return the outcomes; an error is logged, and the next wakeup tries again."""
        with self._busy:
            try:
                return waking.wake(lambda: self.params, self.folder, self.clock, self.key, resident=True)
            except BusyError as error:
                log.warning("%s", error)
                self._try_again()
                return []
            except Exception as error:
                log.error("%s", error, exc_info=not isinstance(error, UserError | OSError))
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
        scheduler = self.scheduler
        scheduler.add_job(self.tick, self.trigger, misfire_grace_time=grace, id=WAKEUP)
        scheduler.add_job(self.tick)  # at once: cycles that came due while no process served
        scheduler.start()
        log.info("serving: wakes at '%s' (%s); next at %s", rules.cron, rules.time_zone, self.next_wakeup())
        while not self.stopping.wait(WATCH_SECONDS):
            self.watch()
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

    def next_wakeup(self) -> str:
        """Return the next time at which the schedule wakes, UTC."""
        moment: datetime = self.trigger.get_next_fire_time(None, self.clock.now())
        return iso(moment)

    def watch(self) -> None:
        """Let the scheduler look at the clock, which may have been set while it slept by the machine's seconds."""
        now, job = self.clock.now(), self.scheduler.get_job(WAKEUP)
        following: datetime = self.trigger.get_next_fire_time(None, now)
        jitter = timedelta(seconds=self.params.live.schedule.jitter_seconds)
        if job.next_run_time > following + jitter + CLOCK_SET:
            job.reschedule(self.trigger)
            self.scheduler.add_job(self.tick)  # at once: a wakeup may have been missed
            log.warning("clock_jump: the clock was set back; the next wakeup is at %s", self.next_wakeup())
        self.scheduler.wakeup()

    def _try_again(self) -> None:
        """Wake once more soon: what is due cannot wait for the next wakeup of a rare schedule."""
        if self.scheduler.running:
            moment = self.clock.now() + timedelta(seconds=WATCH_SECONDS)
            self.scheduler.add_job(self.tick, "date", run_date=moment, id="again", replace_existing=True)
