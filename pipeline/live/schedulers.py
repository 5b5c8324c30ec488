"""The schedulers of a rehearsal: woken at given times in this process or in ones of their own, and made to fail."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from multiprocessing.process import BaseProcess
from pathlib import Path

from tqdm import tqdm

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.durable import FAILPOINT
from fieldcast.pipeline.live.clock import SystemClock
from fieldcast.pipeline.live.context import Station
from fieldcast.pipeline.live.outcomes import ExitCode, code_of, worst
from fieldcast.pipeline.live.rehearsal import Expected

log = logging.getLogger(__name__)
FAILPOINTS = (  # at which a process is killed
    "frame-written",
    "claimed",
    "store_created",
    "store_written",
    "manifest_written",
    "synced",
    "before_rename",
    "renamed",
    "before_catalogue",
    "before_commit",
    "committed",
    "retired",
    "rows-pruned",
)
DISK = {  # how the disk fails, and the exit code that says so
    "store_written:enospc": ExitCode.CANNOT_WRITE,
    "before_catalogue:enospc": ExitCode.CANNOT_WRITE,
    "synced:eio": ExitCode.BUG,
    "before_commit:eio": ExitCode.BUG,
}
KILLED = -9
KILLS = 0.1  # of the wakings side by side at which a cycle is decided: one is killed at a random moment
KILL_SECONDS = 0.5  # within which it is
SIDE_BY_SIDE = (0.6, 0.1)  # of the wakings at which a cycle is decided, and of the others
PRELOADED = [
    __name__,
    "distributed",
    "h5netcdf",
    "fieldcast.models.persistence.forecast",
]  # what a cycle imports when it runs


class ShownClock(SystemClock):
    """A clock that shows a given time; seconds pass as they do."""

    def __init__(self, shown: datetime) -> None:
        self.shown = shown

    def now(self) -> datetime:
        """Return the time that is shown."""
        return self.shown


@dataclass(frozen=True)
class Waking:
    """A moment at which both schedulers look for work, and what goes wrong meanwhile."""

    at: datetime
    off: timedelta = timedelta()  # by which the machine's clock is wrong
    failpoint: str = ""  # at which the first scheduler fails, such as 'claimed:kill'
    kill_after: float | None = None  # seconds after which the first scheduler is killed
    together: bool = False  # in two processes at once

    @property
    def shown(self) -> datetime:
        """Return what the machine's clock shows."""
        return self.at + self.off


def disturbed(wakings: Sequence[Waking], expected: Sequence[Expected], seed: int) -> list[Waking]:
    """Return wakings with all that goes wrong with processes and disk: each way once, as far as there are cycles."""
    rng = random.Random(seed)
    wrong = {it.at for it in wakings if it.off}
    good = sorted({it.at for it in expected if it.quality == "good"})[1:]  # readers have something from the first on
    good = [at for at in good if at not in wrong]
    ways = rng.sample([*(f"{name}:kill" for name in FAILPOINTS), *DISK], len(FAILPOINTS) + len(DISK))
    failing = dict(zip(rng.sample(good, min(len(good), len(ways))), ways, strict=False))
    decided = {it.at for it in expected}
    result = []
    for waking in wakings:
        if waking.at in failing:
            result.append(replace(waking, failpoint=failing[waking.at]))
            continue
        together = rng.random() < SIDE_BY_SIDE[waking.at not in decided]
        kill = together and waking.at in decided and rng.random() < KILLS
        result.append(replace(waking, together=together, kill_after=rng.uniform(0, KILL_SECONDS) if kill else None))
    return result


def wake(params: Params, folder: Path, now: datetime, init_times: Sequence[datetime] | None = None) -> int:
    """Look for work once, as `fieldcast cycle` does at that time, and return its exit code."""
    try:
        return worst(cycle.run(Station(params, folder, ShownClock(now)), init_times))
    except Exception as error:
        code = code_of(error)
        log.log(logging.ERROR if code is ExitCode.BUG else logging.INFO, "%s", error, exc_info=code is ExitCode.BUG)
        return code


def start(params: Params, folder: Path, waking: Waking, log_path: Path) -> BaseProcess:
    """Return a process of its own that looks for work once and ends with the exit code.

    It comes from a server that has loaded everything and holds neither lock nor ledger.
    """
    context = multiprocessing.get_context("forkserver")
    advection = ["fieldcast.pipeline.live.with_advection"] if "advection" in params.models else []
    context.set_forkserver_preload(PRELOADED + advection)
    process = context.Process(target=_look, args=(params, folder, waking.shown, waking.failpoint, log_path))
    process.start()
    return process


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send what the project logs to a file instead of the terminal."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("pipeline")
    level, propagate = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate
        handler.close()


def _look(params: Params, folder: Path, now: datetime, failpoint: str, log_path: Path) -> None:
    os.environ[FAILPOINT] = failpoint
    tqdm.set_lock(threading.RLock())  # instead of one between processes, which a kill would leave behind
    with logging_to(log_path):
        sys.exit(wake(params, folder, now))
