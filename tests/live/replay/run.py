"""One run of a replay: an archive comes in as a feed with faults, under a simulated clock.

Two schedulers are woken, side by side and one after the other; processes are killed in mid-cycle; disk, clock and
tracker fail. The right end follows from the archive and the plan of faults, and is compared with the state at the end.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from datetime import datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live import cycle, post_cycle
from fieldcast.pipeline.live.archive import publish
from fieldcast.pipeline.live.archive.ledger import OPEN, Ledger
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.monitoring.metrics import write_metrics
from fieldcast.pipeline.live.monitoring.page import write_page
from fieldcast.pipeline.live.monitoring.status import read_status
from fieldcast.pipeline.live.outcomes import ExitCode, Result
from fieldcast.pipeline.tracking.runs import DATABASE, open_client
from tests.live.clocks import FixedClock
from tests.live.replay.config import (
    CHECKPOINT,
    EXPERIMENT,
    FEED,
    LIVE,
    WAKEUPS,
    ReplayConfig,
    ReplayOptions,
    open_archive,
    params_of,
    write_checkpoint,
)
from tests.live.replay.faults import Feed, plan_feed
from tests.live.replay.result import FaultLog, ReplayResult, changed, examine, snapshot
from tests.live.replay.schedulers import DISK, KILLED, Wakeup, disturbed, logging_to, start, wake

MARK, LOG, PAGE, UNDISTURBED = "replay.json", "replay.log", "status.html", "undisturbed"
JUMPS = {  # of the clock, at these shares of the schedule: by hours, wakeup by wakeup, then it is right again
    1 / 4: [30.0] * WAKEUPS,
    1 / 2: [-2.0] * WAKEUPS,
    3 / 4: [5.0] * (WAKEUPS // 2) + [-3.0] * (WAKEUPS - WAKEUPS // 2),  # set twice
}
RECORDED = "cycle/degraded"  # a value of every record of a forecast
SYNC_STEPS = 6  # between two calls to the tracker
ORDINARY = (ExitCode.DONE, ExitCode.TRY_AGAIN)


def replay(options: ReplayOptions) -> ReplayResult:
    """Run a replay in its folder, which it empties, and return the result."""
    before = time.perf_counter()
    _empty(options)
    with logging_to(options.into / LOG), _tracking_in(options.into):
        run = ReplayRun(set_up(options), options.into / LIVE)
        run.run()
        result = run.examine()
        result.changed_by_rerun = run.rerun()
        result.unlike_undisturbed = run.compare_undisturbed()
    result.page = run.folder / PAGE
    result.seconds = time.perf_counter() - before
    content = {"options": asdict(options), **result.as_dict()}
    (options.into / MARK).write_text(json.dumps(content, indent=2, default=str) + "\n")
    return result


def set_up(options: ReplayOptions) -> ReplayConfig:
    """Return the replay with its archive opened, its model written, and its feed planned."""
    archived = open_archive(options)
    folder = options.into / CHECKPOINT
    write_checkpoint(folder, options, archived)
    params = params_of(options, archived, options.into / FEED, folder)
    config = ReplayConfig(options, archived, params, folder)
    plan = plan_feed(
        {time: Path(part.name) for time, part in archived.parts.items()},
        options.archive.resolve(),
        archived.step,
        config.deadline,
        clean=options.history,
        outage=options.history + 1,
        seed=options.seed if options.feed_faults else None,
    )
    return replace(config, plan=plan)


class ReplayRun:
    """One run of the schedule over the feed with its faults, and the checks afterwards."""

    def __init__(self, config: ReplayConfig, folder: Path) -> None:
        self.config, self.folder, self.params = config, folder, config.params
        self.fault_log = FaultLog()
        step, last = config.archive.step, config.init_times[-1]
        self.schedule = _moments(config.init_times[0], last, step / WAKEUPS)
        self.ending = _moments(last + step / WAKEUPS, last + 2 * step, step / WAKEUPS)
        end = last + (config.options.horizon + 1) * step + config.patience
        self.ending += _moments(last + 3 * step, end, step)
        wrong = _wrong_clocks(self.schedule) if config.options.machine_faults else {}
        self.expected = config.expected([at for at in self.schedule + self.ending if at not in wrong])
        self.wakeups = [Wakeup(at, off=wrong.get(at, timedelta())) for at in self.schedule]
        if config.options.machine_faults:
            self.fault_log.struck["clock set"] = sum(len(set(hours)) for hours in JUMPS.values())
            self.wakeups = disturbed(self.wakeups, self.expected, config.options.seed)

    def run(self) -> None:
        """Wake the schedulers through the day, write the page, then wake them until every forecast is verified."""
        feed = Feed(self.config.options.into / FEED, self.config.plan.arrivals)
        third = len(self.wakeups) // 3
        with tqdm(self.wakeups, desc="replay", unit="wakeup", disable=not sys.stderr.isatty()) as progress:
            for number, wakeup in enumerate(progress):
                feed.deliver(wakeup.at)
                self._wake_both(wakeup)
                if number % (SYNC_STEPS * WAKEUPS) == 0:
                    self._sync_tracker(wakeup.at, down=third <= number < 2 * third)
        for at in self.ending:
            feed.deliver(at)
            with Ledger(self.folder / publish.LEDGER, read_only=True) as ledger:
                left = [it.init_time for it in ledger.cycles(states=OPEN)]
            self._note(iso(at), wake(self.params, self.folder, at, left), ORDINARY)
            if not left and not (self.folder / PAGE).exists():
                self._write_page(at)
        self._sync_tracker(self.ending[-1], down=False)

    def examine(self) -> ReplayResult:
        """Return the comparison of ledger, forecasts and tracker with the expected state."""
        result = examine(self.config, self.expected, self.folder, self.fault_log)
        if self.config.options.machine_faults:
            result.unsent += self._unsent()
        return result

    def rerun(self) -> list[str]:
        """Run all cycles again, by the schedule and by name; return the names of changed entries."""
        before = snapshot(self.folder)
        for at in self.schedule[:-1:WAKEUPS]:  # clocks that the frames contradict
            self._note(f"rerun at {iso(at)}", wake(self.params, self.folder, at), (ExitCode.TRY_AGAIN,))
        lines = changed(before, snapshot(self.folder))
        later = self.ending[-1]
        issued = {it.init_time: it for it in self.expected if it.quality}
        for outcome in cycle.run(LiveContext(self.params, self.folder, FixedClock(later)), sorted(issued)):
            then, times = issued[outcome.init_time].present, self.config.history_times(outcome.init_time)
            right = Result.ALREADY_DONE if self.config.plan.present(times, later) == then else Result.FAILED
            if outcome.result is not right:
                self.fault_log.surprises.append(
                    f"rerun of {iso(outcome.init_time)}: {outcome.result}, expected {right}"
                )
        return lines + changed(before, snapshot(self.folder))

    def compare_undisturbed(self) -> list[str]:
        """Run the schedule once more, with the same feed and no other fault; return the files that differ."""
        root = self.config.options.into / UNDISTURBED
        feed = Feed(root / FEED, self.config.plan.arrivals)
        params = params_of(self.config.options, self.config.archive, feed.folder, self.config.checkpoint)
        moments = {it.at for it in self.expected} | {self.schedule[0]}
        scheduled = set(self.schedule)
        for at in [*self.schedule, *self.ending]:
            if feed.deliver(at) or at in moments:  # at other times there is nothing to do
                left = [it.init_time for it in self.expected if it.init_time <= at <= it.at]
                wake(params, root / LIVE, at, None if at in scheduled else left)
        different = changed(snapshot(self.folder), snapshot(root / LIVE))
        return [name for name in different if name.startswith(f"{publish.FORECASTS}/")]

    def _wake_both(self, wakeup: Wakeup) -> None:
        """Wake two schedulers, side by side or one after the other, with the faults of this wakeup."""
        self.fault_log.wakeups += 2
        right = (ExitCode.TRY_AGAIN,) if wakeup.off else ORDINARY
        if wakeup.together:
            self._side_by_side(wakeup, right)
            return
        if wakeup.failpoint:
            self._fail(wakeup)
        for _ in range(1 if wakeup.failpoint else 2):
            self._note(iso(wakeup.at), wake(self.params, self.folder, wakeup.shown), right)

    def _side_by_side(self, wakeup: Wakeup, right: Sequence[int]) -> None:
        self.fault_log.side_by_side += 1
        first, second = self._start(wakeup), self._start(wakeup)
        if wakeup.kill_after is not None:
            time.sleep(wakeup.kill_after)
            first.kill()
        for process in (first, second):
            process.join()
        self.fault_log.struck["killed at random"] += first.exitcode == KILLED
        self._note(iso(wakeup.at), first.exitcode, right if wakeup.kill_after is None else (*right, KILLED))
        self._note(iso(wakeup.at), second.exitcode, right)

    def _fail(self, wakeup: Wakeup) -> None:
        """Let a scheduler fail at its failpoint; readers must see whole forecasts before the next one recovers."""
        process = self._start(wakeup)
        process.join()
        self.fault_log.struck["disk failed" if wakeup.failpoint in DISK else "killed at a failpoint"] += 1
        what = f"{wakeup.failpoint} at {iso(wakeup.at)}"
        self._note(what, process.exitcode, (DISK.get(wakeup.failpoint, KILLED),))
        try:
            newest = publish.read_catalogue(self.folder)[-1]
            publish.check(self.folder / newest["path"], newest["manifest_sha256"])
        except (DamagedError, InputError) as error:
            self.fault_log.surprises.append(f"readers after {what}: {error}")

    def _start(self, wakeup: Wakeup) -> BaseProcess:
        return start(self.params, self.folder, wakeup, self.config.options.into / LOG)

    def _note(self, what: str, code: int | None, right: Sequence[int]) -> None:
        if code not in right:
            words = " or ".join(str(int(it)) for it in right)
            self.fault_log.surprises.append(f"{what}: exit code {code}, expected {words}")

    def _sync_tracker(self, at: datetime, *, down: bool) -> None:
        """Send records to the tracker, which may be down."""
        if not self.config.options.machine_faults:
            return
        self.fault_log.struck["tracker down"] += down
        before = time.perf_counter()
        with _refusing() if down else nullcontext():
            sent = post_cycle.sync(EXPERIMENT, self.folder, FixedClock(at), self.config.options.into)
        if down:
            self.fault_log.tracker_seconds = max(self.fault_log.tracker_seconds, time.perf_counter() - before)
        if down and sent:
            self.fault_log.surprises.append(f"{sent} records have arrived at a tracker that is down")

    def _unsent(self) -> list[str]:
        """Return the forecasts that the tracker does not know, or knows twice."""
        client = open_client(self.config.options.into)
        experiment = client.get_experiment_by_name(f"{EXPERIMENT}-forecasts")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        told = Counter(it.timestamp for run in runs for it in client.get_metric_history(run.info.run_id, RECORDED))
        issued = [it.init_time for it in self.expected if it.quality]
        counts = {init_time: told[round(1000 * init_time.timestamp())] for init_time in issued}
        return [f"{iso(init_time)}: {count} times in MLflow" for init_time, count in counts.items() if count != 1]

    def _write_page(self, at: datetime) -> None:
        status = read_status(self.params, self.folder, FixedClock(at), len(self.expected))
        write_metrics(status, self.folder / "metrics.prom")
        write_page(status, self.folder, self.folder / PAGE)


def _wrong_clocks(schedule: Sequence[datetime]) -> dict[datetime, timedelta]:
    """Return by how much the clock is wrong at the wakeups at which it is."""
    first = {int(share * len(schedule)): hours for share, hours in JUMPS.items()}
    return {
        schedule[start + number]: timedelta(hours=off)
        for start, hours in first.items()
        for number, off in enumerate(hours)
        if start + number < len(schedule)
    }


def _moments(first: datetime, last: datetime, step: timedelta) -> list[datetime]:
    return [first + i * step for i in range((last - first) // step + 1)]


def _empty(options: ReplayOptions) -> None:
    """Make an empty folder for a replay; raise `InputError` for one that holds anything else."""
    into = options.into
    if into.is_dir() and any(into.iterdir()):
        if not (into / MARK).is_file():
            raise InputError(f"--into {into}: not empty and no earlier replay, expected a new folder: choose another")
        shutil.rmtree(into)
    into.mkdir(parents=True, exist_ok=True)
    (into / MARK).write_text(json.dumps({"options": asdict(options)}, default=str))


@contextmanager
def _tracking_in(folder: Path) -> Iterator[None]:
    """Keep MLflow's records in a folder, whatever server the user has."""
    with _environment("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve() / DATABASE}"):
        yield


@contextmanager
def _refusing() -> Iterator[None]:
    """Let MLflow be at an address that refuses every connection."""
    with socket.socket() as taken:  # bound, but not listening
        taken.bind(("127.0.0.1", 0))
        with _environment("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{taken.getsockname()[1]}"):
            yield


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
