"""The schedulers of a replay: woken at given times in this process or in ones of their own, and made to fail."""

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
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.outcomes import ExitCode, code_of, worst
from tests.live.clocks import FixedClock
from tests.live.replay.config import Expected

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
DISK = {  # faults of the disk, and the exit code of each
    "store_written:enospc": ExitCode.CANNOT_WRITE,
    "before_catalogue:enospc": ExitCode.CANNOT_WRITE,
    "synced:eio": ExitCode.BUG,
    "before_commit:eio": ExitCode.BUG,
}
KILLED = -9
KILLS = 0.1  # of the wakeups side by side at which a cycle is decided: one is killed at a random moment
KILL_SECONDS = 0.5  # within which it is
SIDE_BY_SIDE = (0.6, 0.1)  # of the wakeups at which a cycle is decided, and of the others
PRELOADED = [
    __name__,
    "distributed",
    "h5netcdf",
    "fieldcast.models.persistence.forecast",
]  # what a cycle imports when it runs


@dataclass(frozen=True)
class Wakeup:
    """A moment at which both schedulers look for work, and the faults meanwhile."""

    at: datetime
    off: timedelta = timedelta()  # by which the machine's clock is wrong
    failpoint: str = ""  # at which the first scheduler fails, such as 'claimed:kill'
    kill_after: float | None = None  # seconds after which the first scheduler is killed
    together: bool = False  # in two processes at once

    @property
    def shown(self) -> datetime:
        """Return the time that the machine's clock shows."""
        return self.at + self.off


def disturbed(wakeups: Sequence[Wakeup], expected: Sequence[Expected], seed: int) -> list[Wakeup]:
    """Return wakeups with the faults of processes and disk: each kind once, as far as there are cycles."""
    rng = random.Random(seed)
    wrong = {it.at for it in wakeups if it.off}
    good = sorted({it.at for it in expected if it.quality == "good"})[1:]  # readers have something from the first on
    good = [at for at in good if at not in wrong]
    ways = rng.sample([*(f"{name}:kill" for name in FAILPOINTS), *DISK], len(FAILPOINTS) + len(DISK))
    failing = dict(zip(rng.sample(good, min(len(good), len(ways))), ways, strict=False))
    decided = {it.at for it in expected}
    result = []
    for wakeup in wakeups:
        if wakeup.at in failing:
            result.append(replace(wakeup, failpoint=failing[wakeup.at]))
            continue
        together = rng.random() < SIDE_BY_SIDE[wakeup.at not in decided]
        kill = together and wakeup.at in decided and rng.random() < KILLS
        result.append(replace(wakeup, together=together, kill_after=rng.uniform(0, KILL_SECONDS) if kill else None))
    return result


def wake(params: Params, folder: Path, now: datetime, init_times: Sequence[datetime] | None = None) -> int:
    """Look for work once, as `fieldcast cycle` does at that time, and return its exit code."""
    try:
        return worst(cycle.run(LiveContext(params, folder, FixedClock(now)), init_times))
    except Exception as error:
        code = code_of(error)
        log.log(logging.ERROR if code is ExitCode.BUG else logging.INFO, "%s", error, exc_info=code is ExitCode.BUG)
        return code


def start(params: Params, folder: Path, wakeup: Wakeup, log_path: Path) -> BaseProcess:
    """Return a process of its own that looks for work once and ends with the exit code.

    It comes from a server that has loaded everything and holds neither lock nor ledger.
    """
    context = multiprocessing.get_context("forkserver")
    advection = ["tests.live.replay.preload"] if "advection" in params.models else []
    context.set_forkserver_preload(PRELOADED + advection)
    process = context.Process(target=_run_once, args=(params, folder, wakeup.shown, wakeup.failpoint, log_path))
    process.start()
    return process


@contextmanager
def logging_to(path: Path) -> Iterator[None]:
    """Send what the project logs to a file instead of the terminal."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("fieldcast")
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


def _run_once(params: Params, folder: Path, now: datetime, failpoint: str, log_path: Path) -> None:
    os.environ[FAILPOINT] = failpoint
    tqdm.set_lock(threading.RLock())  # instead of one between processes, which a kill would leave behind
    with logging_to(log_path):
        sys.exit(wake(params, folder, now))
