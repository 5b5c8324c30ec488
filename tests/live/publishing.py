"""Publishing without a model, for the tests of the archive: fields drawn from the init time, the rest as a cycle does.

Functions here run in processes of their own too: nothing starts a thread when this module is imported.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fieldcast.pipeline.config import Retention
from fieldcast.pipeline.errors import BusyError
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive import recovery
from fieldcast.pipeline.live.archive.durable import FAILPOINT, failpoint, locked
from fieldcast.pipeline.live.archive.ledger import VISIBLE, Cycle, Ledger, State
from fieldcast.pipeline.live.archive.publish import Issue, path_of
from fieldcast.pipeline.live.clock import SystemClock
from fieldcast.pipeline.sources.template import grid_template

START = datetime(2020, 10, 31, 6, tzinfo=UTC)
STEP = timedelta(minutes=5)
LEADS, HEIGHT, WIDTH = 3, 5, 7
RAIN = {"units": "mm h-1", "standard_name": "rainfall_rate", "long_name": "Rain rate"}
SEED = int(os.environ.get("FIELDCAST_SEED", "1"))
ATTEMPTS, WAIT_SECONDS = 3, 30.0

processes: ForkServerContext = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["pytest", "tests.live.publishing"])


def at(number: int) -> datetime:
    """Return the init time of the cycle with this number."""
    return START + number * STEP


def grid(
    names: Sequence[str] = ("rain_rate",), size: tuple[int, int] = (HEIGHT, WIDTH), x_first: float = 0.0
) -> xr.Dataset:
    """Return a grid without frames, 2 km wide cells."""
    axes = [
        xr.Variable(axis, 2.0 * np.arange(cells) + first, {"units": "km"})
        for axis, cells, first in (("y", size[0], 0.0), ("x", size[1], x_first))
    ]
    return grid_template(axes[0], axes[1], dict.fromkeys(names, RAIN), {"title": "Test"})


def fields(init_time: datetime, leads: int = LEADS, channels: int = 1, size: tuple[int, int] = (HEIGHT, WIDTH)) -> Any:
    """Return a forecast (lead, c, y, x) that the init time decides, with one cell that was never observed."""
    random = np.random.default_rng(int(init_time.timestamp()))
    made = random.gamma(1.0, 2.0, (leads, channels, *size)).astype(np.float32)
    made[..., 0, 2] = np.nan
    return made


@contextmanager
def writing(folder: Path, attempts: int = ATTEMPTS) -> Iterator[Ledger]:
    """Yield the ledger to one process at a time, recovered, as a cycle has it."""
    folder.mkdir(exist_ok=True)
    with locked(folder / "lock", WAIT_SECONDS, SystemClock()), Ledger(folder / archive.LEDGER) as ledger:
        ledger.take_token(f"test:{os.getpid()}")
        recovery.recover(folder, ledger, attempts, START)
        yield ledger


def claim(ledger: Ledger, init_time: datetime, revision: int = 0) -> Cycle:
    """Enter the row of a cycle that is about to be forecast."""
    known = [row for row in ledger.cycles(init_time, init_time) if row.revision == revision]
    row = known[0] if known else Cycle(init_time, revision, due_at=init_time, deadline_at=init_time)
    claimed = replace(
        row, state=State.RUNNING, attempt=row.attempt + 1, token=ledger.token, model="convlstm", model_version="test/1"
    )
    with ledger.writing(fenced=True):
        ledger.put(claimed, "running", START)
    failpoint("claimed")
    return claimed


def issue(
    folder: Path,
    ledger: Ledger,
    cycle: Cycle,
    values: np.ndarray | None = None,
    *,
    on: xr.Dataset | None = None,
    quality: str = "good",
    reserve: float | None = 0.0,
) -> Path:
    """Publish a claimed cycle and return where its forecast lies; `reserve` None: without looking for free space."""
    on = grid() if on is None else on
    values = fields(cycle.init_time) if values is None else values
    run_key = f"{cycle.init_time:%H%M}{cycle.revision}"
    facts = (cycle.model, cycle.model_version, quality, 0, run_key, "c" * 64, 5)
    target = path_of(folder, cycle.init_time, cycle.revision)
    if reserve is not None:
        archive.require_space(folder, values.nbytes, reserve)
    made = Issue(cycle.init_time, cycle.revision, *facts)
    staging, digest = archive.stage(target, made, on, values[None], ledger.token)
    state = State.PUBLISHED if quality == "good" else State.DEGRADED
    done = replace(cycle, state=state, ended_at=START, quality=quality, run_key=run_key, manifest_sha256=digest)
    archive.commit(folder, ledger, done, staging, START)
    return target


def publish(
    folder: Path,
    init_time: datetime,
    values: np.ndarray | None = None,
    *,
    revision: int = 0,
    on: xr.Dataset | None = None,
    quality: str = "good",
    reserve: float | None = 0.0,
) -> Path | None:
    """Publish one cycle as a process of its own does; return where it lies, or None if it was published before."""
    with writing(folder) as ledger:
        known = {row.revision: row.state for row in ledger.cycles(init_time, init_time)}
        if known.get(revision) in VISIBLE:
            return None
        cycle = claim(ledger, init_time, revision)
        return issue(folder, ledger, cycle, values, on=on, quality=quality, reserve=reserve)


def publish_and_retire(folder: Path, init_time: datetime) -> None:
    """Publish one cycle and retire all but the newest two; every failpoint is passed."""
    publish(folder, init_time)
    with writing(folder) as ledger:
        recovery.retire(folder, ledger, Retention(days=None, cycles=2), START)
        recovery.retire(folder, ledger, Retention(days=None, cycles=2), START + 2 * recovery.GRACE)


def publish_patiently(folder: Path, init_times: Sequence[datetime]) -> None:
    """Publish these cycles one by one, each as a process of its own does; wait as long as others are at work."""
    for init_time in init_times:
        while True:
            try:
                publish(folder, init_time)
            except BusyError:
                continue
            break


def failing(failpoint: str, work: Callable[..., object], *arguments: Any) -> None:
    """Do `work` with a failpoint set, 'name:action', in a process of its own."""
    os.environ[FAILPOINT] = failpoint
    work(*arguments)


def start(work: Callable[..., None], *arguments: Any) -> BaseProcess:
    """Start a process that does `work`; fast, since it is forked from one that has everything imported."""
    process = processes.Process(target=work, args=arguments)
    process.start()
    return process


def ended(process: BaseProcess, seconds: float = 60.0) -> int:
    """Return the exit code of a process that ends within so many seconds; fail if it does not."""
    process.join(seconds)
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
        raise AssertionError(f"process {process.pid} did not end within {seconds} s")
    process.close()
    return code
