"""A rehearsal of scheduled forecasts: an archive comes in as a feed with faults, under a clock that is simulated.

Two schedulers are woken, side by side and one after the other; processes are killed in mid-cycle; disk, clock and
tracker fail. What must come of it is known beforehand, from the archive and the plan of faults, and is held against
what is there in the end. `fieldcast replay` runs it.
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

from fieldcast.models.layers.motion import load_pysteps
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live import post_cycle as afterwards
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive.ledger import OPEN, Ledger
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.context import Station
from fieldcast.pipeline.live.faults import Feed, plan_feed
from fieldcast.pipeline.live.findings import Findings, Machine, changed, examine, snapshot
from fieldcast.pipeline.live.monitoring import status
from fieldcast.pipeline.live.outcomes import ExitCode, Result
from fieldcast.pipeline.live.rehearsal import (
    CHECKPOINT,
    EXPERIMENT,
    FEED,
    LIVE,
    WAKINGS,
    Rehearsal,
    Setting,
    open_archive,
    params_of,
    write_checkpoint,
)
from fieldcast.pipeline.live.schedulers import DISK, KILLED, ShownClock, Waking, disturbed, logging_to, start, wake
from fieldcast.pipeline.tracking.runs import DATABASE, open_client

MARK, LOG, PAGE, UNDISTURBED = "replay.json", "replay.log", "status.html", "undisturbed"
JUMP = timedelta(hours=-2)  # of the clock, for a step of the archive, then it is right again
RECORDED = "cycle/degraded"  # a value of every record of a forecast
TELL_STEPS = 6  # between two calls to the tracker
ORDINARY = (ExitCode.DONE, ExitCode.TRY_AGAIN)


def replay(rehearsal: Rehearsal) -> Findings:
    """Run a rehearsal in its folder, which it empties, and return what was found."""
    before = time.perf_counter()
    _empty(rehearsal)
    with logging_to(rehearsal.into / LOG), _tracking_in(rehearsal.into):
        play = Play(set_up(rehearsal), rehearsal.into / LIVE)
        play.run()
        findings = play.examine()
        findings.changed_by_rerun = play.rerun()
        findings.unlike_undisturbed = play.compare_undisturbed()
    findings.page = play.folder / PAGE
    findings.seconds = time.perf_counter() - before
    content = {"rehearsal": asdict(rehearsal), **findings.as_dict()}
    (rehearsal.into / MARK).write_text(json.dumps(content, indent=2, default=str) + "\n")
    return findings


def set_up(rehearsal: Rehearsal) -> Setting:
    """Return the rehearsal with its archive opened, its model written, and its feed planned."""
    if rehearsal.model == "advection":
        try:
            load_pysteps()
        except ValueError as error:
            raise InputError(f"{error}; or choose --model persistence") from error
    archived = open_archive(rehearsal)
    folder = rehearsal.into / CHECKPOINT
    write_checkpoint(folder, rehearsal, archived)
    params = params_of(rehearsal, archived, rehearsal.into / FEED, folder)
    setting = Setting(rehearsal, archived, params, folder)
    plan = plan_feed(
        {time: Path(part.name) for time, part in archived.parts.items()},
        rehearsal.archive.resolve(),
        archived.step,
        setting.deadline,
        clean=rehearsal.history,
        outage=rehearsal.history + 1,
        seed=rehearsal.seed if rehearsal.feed_faults else None,
    )
    return replace(setting, plan=plan)


class Play:
    """One run of the schedule over the feed, with all that goes wrong, and what is looked at when it is over."""

    def __init__(self, setting: Setting, folder: Path) -> None:
        self.setting, self.folder, self.params = setting, folder, setting.params
        self.machine = Machine()
        step, last = setting.archive.step, setting.init_times[-1]
        self.schedule = _moments(setting.init_times[0], last, step / WAKINGS)
        self.ending = _moments(last + step / WAKINGS, last + 2 * step, step / WAKINGS)
        end = last + (setting.rehearsal.horizon + 1) * step + setting.patience
        self.ending += _moments(last + 3 * step, end, step)
        middle = len(self.schedule) // 2
        wrong = self.schedule[middle : middle + WAKINGS] if setting.rehearsal.machine_faults else []
        self.expected = setting.expected([at for at in self.schedule + self.ending if at not in wrong])
        self.wakings = [Waking(at, off=JUMP if at in wrong else timedelta()) for at in self.schedule]
        if setting.rehearsal.machine_faults:
            self.machine.struck["clock set back and forth"] = int(bool(wrong))
            self.wakings = disturbed(self.wakings, self.expected, setting.rehearsal.seed)

    def run(self) -> None:
        """Wake the schedulers through the day, write the page, then wake them until every forecast is verified."""
        feed = Feed(self.setting.rehearsal.into / FEED, self.setting.plan.arrivals)
        third = len(self.wakings) // 3
        with tqdm(self.wakings, desc="replay", unit="waking", disable=not sys.stderr.isatty()) as progress:
            for number, waking in enumerate(progress):
                feed.deliver(waking.at)
                self._wake_both(waking)
                if number % (TELL_STEPS * WAKINGS) == 0:
                    self._tell_tracker(waking.at, down=third <= number < 2 * third)
        for at in self.ending:
            feed.deliver(at)
            with Ledger(self.folder / archive.LEDGER, read_only=True) as ledger:
                left = [it.init_time for it in ledger.cycles(states=OPEN)]
            self._note(iso(at), wake(self.params, self.folder, at, left), ORDINARY)
            if not left and not (self.folder / PAGE).exists():
                self._write_page(at)
        self._tell_tracker(self.ending[-1], down=False)

    def examine(self) -> Findings:
        """Return what was found in ledger, forecasts and tracker."""
        findings = examine(self.setting, self.expected, self.folder, self.machine)
        if self.setting.rehearsal.machine_faults:
            findings.unsent += self._untold()
        return findings

    def rerun(self) -> list[str]:
        """Go through all of it again, by the schedule and by name; return what has changed."""
        before = snapshot(self.folder)
        for at in self.schedule[::WAKINGS]:
            self._note(f"rerun at {iso(at)}", wake(self.params, self.folder, at), (ExitCode.TRY_AGAIN,))
        lines = changed(before, snapshot(self.folder))
        later = self.ending[-1]
        issued = {it.init_time: it for it in self.expected if it.quality}
        for outcome in cycle.run(Station(self.params, self.folder, ShownClock(later)), sorted(issued)):
            then, times = issued[outcome.init_time].present, self.setting.history_of(outcome.init_time)
            right = Result.ALREADY_DONE if self.setting.plan.present(times, later) == then else Result.FAILED
            if outcome.result is not right:
                self.machine.surprises.append(f"rerun of {iso(outcome.init_time)}: {outcome.result}, expected {right}")
        return lines + changed(before, snapshot(self.folder))

    def compare_undisturbed(self) -> list[str]:
        """Run the schedule once more, the same feed and nothing else that goes wrong; return the files that differ."""
        root = self.setting.rehearsal.into / UNDISTURBED
        feed = Feed(root / FEED, self.setting.plan.arrivals)
        params = params_of(self.setting.rehearsal, self.setting.archive, feed.folder, self.setting.checkpoint)
        moments = {it.at for it in self.expected} | {self.schedule[0]}
        scheduled = set(self.schedule)
        for at in [*self.schedule, *self.ending]:
            if feed.deliver(at) or at in moments:  # at other times there is nothing to do
                left = [it.init_time for it in self.expected if it.init_time <= at <= it.at]
                wake(params, root / LIVE, at, None if at in scheduled else left)
        different = changed(snapshot(self.folder), snapshot(root / LIVE))
        return [name for name in different if name.startswith(f"{archive.FORECASTS}/")]

    def _wake_both(self, waking: Waking) -> None:
        """Wake two schedulers, side by side or one after the other, and let happen what shall go wrong."""
        self.machine.wakings += 2
        right = (ExitCode.TRY_AGAIN,) if waking.off else ORDINARY
        if waking.together:
            self._side_by_side(waking, right)
            return
        if waking.failpoint:
            self._fail(waking)
        for _ in range(1 if waking.failpoint else 2):
            self._note(iso(waking.at), wake(self.params, self.folder, waking.shown), right)

    def _side_by_side(self, waking: Waking, right: Sequence[int]) -> None:
        self.machine.side_by_side += 1
        first, second = self._start(waking), self._start(waking)
        if waking.kill_after is not None:
            time.sleep(waking.kill_after)
            first.kill()
        for process in (first, second):
            process.join()
        self.machine.struck["killed at random"] += first.exitcode == KILLED
        self._note(iso(waking.at), first.exitcode, right if waking.kill_after is None else (*right, KILLED))
        self._note(iso(waking.at), second.exitcode, right)

    def _fail(self, waking: Waking) -> None:
        """Let a scheduler fail where it shall; readers must see whole forecasts before anybody tidies up."""
        process = self._start(waking)
        process.join()
        self.machine.struck["disk failed" if waking.failpoint in DISK else "killed at a failpoint"] += 1
        what = f"{waking.failpoint} at {iso(waking.at)}"
        self._note(what, process.exitcode, (DISK.get(waking.failpoint, KILLED),))
        try:
            newest = archive.read_catalogue(self.folder)[-1]
            archive.check(self.folder / newest["path"], newest["manifest_sha256"])
        except (DamagedError, InputError) as error:
            self.machine.surprises.append(f"readers after {what}: {error}")

    def _start(self, waking: Waking) -> BaseProcess:
        return start(self.params, self.folder, waking, self.setting.rehearsal.into / LOG)

    def _note(self, what: str, code: int | None, right: Sequence[int]) -> None:
        if code not in right:
            words = " or ".join(str(int(it)) for it in right)
            self.machine.surprises.append(f"{what}: exit code {code}, expected {words}")

    def _tell_tracker(self, at: datetime, *, down: bool) -> None:
        """Send records to the tracker, which may be down."""
        if not self.setting.rehearsal.machine_faults:
            return
        self.machine.struck["tracker down"] += down
        before = time.perf_counter()
        with _refusing() if down else nullcontext():
            sent = afterwards.sync(EXPERIMENT, self.folder, ShownClock(at), self.setting.rehearsal.into)
        if down:
            self.machine.tracker_seconds = max(self.machine.tracker_seconds, time.perf_counter() - before)
        if down and sent:
            self.machine.surprises.append(f"{sent} records have arrived at a tracker that is down")

    def _untold(self) -> list[str]:
        """Return the forecasts that the tracker does not know, or knows twice."""
        client = open_client(self.setting.rehearsal.into)
        experiment = client.get_experiment_by_name(f"{EXPERIMENT}-forecasts")
        runs = client.search_runs([experiment.experiment_id]) if experiment else []
        told = Counter(it.timestamp for run in runs for it in client.get_metric_history(run.info.run_id, RECORDED))
        issued = [it.init_time for it in self.expected if it.quality]
        counts = {init_time: told[round(1000 * init_time.timestamp())] for init_time in issued}
        return [f"{iso(init_time)}: {count} times in MLflow" for init_time, count in counts.items() if count != 1]

    def _write_page(self, at: datetime) -> None:
        found = status.look(self.params, self.folder, ShownClock(at), len(self.expected))
        status.write_metrics(found, self.folder / "metrics.prom")
        status.write_page(found, self.folder, self.folder / PAGE)


def _moments(first: datetime, last: datetime, step: timedelta) -> list[datetime]:
    return [first + i * step for i in range((last - first) // step + 1)]


def _empty(rehearsal: Rehearsal) -> None:
    """Make an empty folder of the rehearsal's; raise `InputError` for one that holds anything else."""
    into = rehearsal.into
    if into.is_dir() and any(into.iterdir()):
        if not (into / MARK).is_file():
            raise InputError(f"--into {into}: not empty and no earlier replay, expected a new folder: choose another")
        shutil.rmtree(into)
    into.mkdir(parents=True, exist_ok=True)
    (into / MARK).write_text(json.dumps({"rehearsal": asdict(rehearsal)}, default=str))


@contextmanager
def _tracking_in(folder: Path) -> Iterator[None]:
    """Let MLflow's records lie in a folder, whatever server the user has."""
    with _environment("MLFLOW_TRACKING_URI", f"sqlite:///{folder.resolve() / DATABASE}"):
        yield


@contextmanager
def _refusing() -> Iterator[None]:
    """Let MLflow be at an address that refuses every connection."""
    with socket.socket() as taken:  # bound, but nobody listens
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
