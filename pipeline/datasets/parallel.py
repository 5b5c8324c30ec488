"""Blocks of work on threads of this process or on a dask cluster, a bounded number at a time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from dask.base import compute
from dask.delayed import delayed
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
    """Return `function(*job)` for each job, in order, with a progress bar on a terminal.

    `scheduler` is None for threads, 'synchronous' for one after the other, or the address of a dask.distributed
    scheduler whose workers see the same files. Twice as many jobs as workers are in flight at most, so that memory
    does not grow with the number of jobs.
    """
    results: list[Result] = []
    progress = tqdm(total=len(jobs), desc=description, unit=unit, disable=not sys.stderr.isatty())
    with _workers(scheduler) as (name, count), progress:
        for start in range(0, len(jobs), 2 * count):
            some = jobs[start : start + 2 * count]
            tasks = [delayed(function, pure=False, traverse=False)(*job) for job in some]
            results += compute(*tasks, scheduler=name)  # type: ignore[no-untyped-call]
            progress.update(len(some))
    return results


@contextmanager
def _workers(scheduler: str | None) -> Iterator[tuple[Any, int]]:
    """Yield what dask calls the scheduler and the number of workers behind it."""
    if scheduler == "synchronous":
        yield "synchronous", 1
    elif scheduler is None:
        yield "threads", os.cpu_count() or 1
    else:
        from distributed import Client

        with Client(scheduler) as client:  # type: ignore[no-untyped-call]
            yield client, max(1, sum(client.nthreads().values()))
