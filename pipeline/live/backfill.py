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
from fieldcast.pipeline.live.context import Station
from fieldcast.pipeline.live.cycle import Prepared
from fieldcast.pipeline.live.deployed_model import forecast_one
from fieldcast.pipeline.live.outcomes import Outcome

TOGETHER = 32  # cycles on a cluster at once, and under one lock


def backfill(station: Station, start: datetime, end: datetime) -> list[Outcome]:
    """Issue every init time from `start` to `end`, both included, that has no forecast; return what became of each.

    With `dask.scheduler` set, the model runs on that cluster, whose workers see the same files; publishing stays here.
    """
    if end < start:
        raise InputError(f"--to {end:%Y-%m-%dT%H:%M} lies before --from {start:%Y-%m-%dT%H:%M}: exchange them")
    init_times = station.axis.after(start - station.axis.step / 1000, end)
    if not init_times:
        raise InputError(
            f"no init time from {start:%Y-%m-%dT%H:%M} to {end:%Y-%m-%dT%H:%M}, expected one every {station.axis.every}"
        )
    if init_times[-1] > station.clock.now():
        raise InputError(f"--to {end:%Y-%m-%dT%H:%M} lies in the future, expected a past time")
    scheduler = station.params.dask.scheduler
    together = TOGETHER if scheduler else 1
    outcomes: list[Outcome] = []
    with tqdm(total=len(init_times), desc="backfill", unit="cycle", disable=not sys.stderr.isatty()) as progress:
        for start_at in range(0, len(init_times), together):
            some = init_times[start_at : start_at + together]
            outcomes += _on_cluster(station, some, scheduler) if scheduler else cycle.run(station, some)
            progress.update(len(some))
    return outcomes


def _on_cluster(station: Station, init_times: list[datetime], scheduler: str) -> list[Outcome]:
    """Run some cycles with their forecasts made on the cluster beforehand, side by side."""
    with station.writing() as ledger:
        now = station.clock.now()
        station.bring_in(ledger, init_times, now)
        prepared = [it for it in _prepared(station, init_times, now) if it.fallback is None]
    chosen = station.chosen
    options = (chosen.tile_cells, chosen.overlap_cells)
    jobs = [
        (chosen.folder.resolve(), chosen.digest, it.history, to_numpy(it.cycle.init_time), *options) for it in prepared
    ]
    made = run_blocks(forecast_one, jobs, scheduler=scheduler, description="forecast", unit="cycle")
    fields = {it.cycle.run_key: values for it, values in zip(prepared, made, strict=True)}

    def compute(wanted: Prepared) -> np.ndarray:
        ready = fields.get(wanted.cycle.run_key)
        return cycle.forecast(station, wanted) if ready is None else ready

    return cycle.run(station, init_times, compute=compute)


def _prepared(station: Station, init_times: list[datetime], now: datetime) -> Iterator[Prepared]:
    for init_time in init_times:
        found = cycle.prepare(station, station.due(init_time), now, {})
        if isinstance(found, Prepared):
            yield found
