"""Forecasts of a past period, cycle by cycle, on this machine or on a dask cluster."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime

import numpy as np
from tqdm import tqdm

from fieldcast.pipeline.datasets.parallel import run_blocks
from fieldcast.pipeline.datasets.times import to_numpy
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.cycle import Prepared
from fieldcast.pipeline.live.deployed_model import forecast_one
from fieldcast.pipeline.live.outcomes import Outcome

BATCH_CYCLES = 32  # on a cluster at once, and under one lock


def backfill(context: LiveContext, start: datetime, end: datetime) -> list[Outcome]:
    """Issue every init time from `start` to `end`, both included, that has no forecast; return all outcomes.

    With `dask.scheduler` set, the model runs on that cluster, whose workers see the same files; publishing stays here.
    """
    init_times = _init_times(context, start, end)
    scheduler = context.params.dask.scheduler
    size = BATCH_CYCLES if scheduler else 1
    outcomes: list[Outcome] = []
    with tqdm(total=len(init_times), desc="backfill", unit="cycle", disable=not sys.stderr.isatty()) as progress:
        for first in range(0, len(init_times), size):
            batch = init_times[first : first + size]
            outcomes += _on_cluster(context, batch, scheduler) if scheduler else cycle.run(context, batch)
            progress.update(len(batch))
    return outcomes


def _init_times(context: LiveContext, start: datetime, end: datetime) -> list[datetime]:
    """Return the init times of a period; raise `InputError` where there are none or some are to come."""
    schedule = context.schedule
    if end < start:
        raise InputError(f"--to {end:%Y-%m-%dT%H:%M} is before --from {start:%Y-%m-%dT%H:%M}: swap them")
    init_times = schedule.after(start - schedule.step / 1000, end)
    if not init_times:
        raise InputError(
            f"no init time from {start:%Y-%m-%dT%H:%M} to {end:%Y-%m-%dT%H:%M}, expected one every {schedule.every}"
        )
    if init_times[-1] > context.clock.now():
        raise InputError(f"--to {end:%Y-%m-%dT%H:%M} is in the future, expected a past time")
    return init_times


def _on_cluster(context: LiveContext, init_times: list[datetime], scheduler: str) -> list[Outcome]:
    """Run some cycles with their forecasts made on the cluster beforehand, side by side."""
    with context.writing() as ledger:
        now = context.clock.now()
        context.fetch_frames(ledger, init_times, now)
        prepared = [one for one in _prepared(context, init_times, now) if one.fallback is None]
    model = context.model
    options = (model.tile_cells, model.overlap_cells)
    jobs = [
        (model.folder.resolve(), model.digest, one.history, to_numpy(one.cycle.init_time), *options) for one in prepared
    ]
    forecasts = run_blocks(forecast_one, jobs, scheduler=scheduler, description="forecast", unit="cycle")
    by_key = {one.cycle.run_key: fields for one, fields in zip(prepared, forecasts, strict=True)}

    def compute(wanted: Prepared) -> np.ndarray:
        fields = by_key.get(wanted.cycle.run_key)
        return cycle.forecast(context, wanted) if fields is None else fields

    return cycle.run(context, init_times, compute=compute)


def _prepared(context: LiveContext, init_times: list[datetime], now: datetime) -> Iterator[Prepared]:
    for init_time in init_times:
        prepared = cycle.prepare(context, context.new_cycle(init_time), now, {})
        if isinstance(prepared, Prepared):
            yield prepared
