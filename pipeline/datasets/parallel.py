"""Blocks of work on threads, on processes or on a dask cluster, a bounded number at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Any, TypeVar

import dask.config
from dask.base import compute
from dask.delayed import delayed
from dask.local import get_sync
from dask.multiprocessing import get as get_processes
from dask.threaded import get as get_threaded
from tqdm import tqdm

Result = TypeVar("Result")


def run_blocks(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    *,
    scheduler: str | None,
    description: str,
    unit: str,
) -> list[Result]:
    """Return `function(*job)` for each job, in order; see `iterate_blocks`."""
    return list(iterate_blocks(function, jobs, scheduler=scheduler, description=description, unit=unit))


def iterate_blocks(
    function: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    *,
    scheduler: str | None,
    description: str,
    unit: str,
) -> Iterator[Result]:
    """Yield `function(*job)` for each job, in order, with a progress bar on a terminal.

    `scheduler` is None for threads, 'processes' for processes of this machine, 'synchronous' for one after the other,
    or the address of a dask.distributed scheduler whose workers see the same files. Twice as many jobs as workers are
    in flight at most, so that memory does not grow with the number of jobs.
    """
    progress = tqdm(total=len(jobs), desc=description, unit=unit, disable=not sys.stderr.isatty())
    with _workers(scheduler) as (name, count), progress:
        for start in range(0, len(jobs), 2 * count):
            some = jobs[start : start + 2 * count]
            tasks = [delayed(function, pure=False, traverse=False)(*job) for job in some]
            yield from compute(*tasks, scheduler=name)  # type: ignore[no-untyped-call]
            progress.update(len(some))


@contextmanager
def _workers(scheduler: str | None) -> Iterator[tuple[Any, int]]:
    """Yield dask's scheduler and the number of workers behind it; by name dask would import `distributed` first."""
    if scheduler == "synchronous":
        yield get_sync, 1
    elif scheduler is None:
        yield get_threaded, os.cpu_count() or 1
    elif scheduler == "processes":
        count = os.cpu_count() or 1
        with ProcessPoolExecutor(count, get_context("forkserver")) as pool, dask.config.set(pool=pool, chunksize=1):
            yield get_processes, count
    else:
        from distributed import Client

        with Client(scheduler) as client:  # type: ignore[no-untyped-call]
            yield client, max(1, sum(client.nthreads().values()))
