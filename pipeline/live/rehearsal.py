"""What a rehearsal works on and what it must end in: archive, model, parameters, and the forecast each cycle can make.

Nothing here asks the code that runs the cycles: what is expected follows from the archive and the plan of faults.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from fieldcast import models
from fieldcast.models.layers.latest import latest_valid
from fieldcast.pipeline.config import LateData, Params
from fieldcast.pipeline.config.sources import IngestOptions, RadarOptions
from fieldcast.pipeline.datasets.schema import field_names
from fieldcast.pipeline.datasets.signature import Channel, signature_of
from fieldcast.pipeline.datasets.times import from_numpy, to_numpy
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.forecasting.forecaster import load
from fieldcast.pipeline.forecasting.tiling import forecast_fields
from fieldcast.pipeline.live.faults import Plan
from fieldcast.pipeline.sources import Segment, open_source
from fieldcast.pipeline.sources.target import Target, read_frames, target_of
from fieldcast.pipeline.sources.time_axis import fit_time_axis

CHECKPOINT, FEED, LIVE, EXPERIMENT = "checkpoint", "feed", "live", "replay"
PATIENCE = 6  # steps after the last valid time after which a truth with gaps is taken as it is
WAKINGS = 5  # in a step
KEPT_FRAMES = 32


@dataclass(frozen=True)
class Rehearsal:
    """What is rehearsed."""

    archive: Path
    format: Literal["bom", "knmi", "fmi"]
    into: Path
    model: Literal["advection", "persistence"] = "advection"
    coarsen: int = 1
    history: int = 3
    horizon: int = 6
    seed: int = 1
    cycles: int | None = None  # the first of them; None: all of the archive
    feed_faults: bool = True
    machine_faults: bool = True  # and two schedulers at once, in processes of their own


class Archive:
    """The frames of an archive on the grid that is wanted; some of the last that were read stay in memory."""

    def __init__(self, parts: dict[datetime, Segment], target: Target, step: timedelta) -> None:
        self.parts, self.target, self.step = parts, target, step
        self.frame = lru_cache(maxsize=KEPT_FRAMES)(self._frame)

    @property
    def names(self) -> list[str]:
        """Return the variables in the order of the forecast's channels."""
        return field_names(self.target.grid)

    def _frame(self, time: datetime) -> np.ndarray:
        """Return one frame (c, y, x) as an ingest of the archive has it."""
        fields = read_frames(self.parts[time], np.array([0]), self.target)
        return np.stack([fields[name][0] for name in self.names])


@dataclass(frozen=True)
class Expected:
    """How a cycle must end: what is there when it is decided, and the quality flag; without one it is skipped."""

    init_time: datetime
    at: datetime
    present: list[bool]
    quality: str

    @property
    def missing(self) -> int:
        """Return how many frames of the history are not there."""
        return self.present.count(False)


@dataclass(frozen=True)
class Setting:
    """A rehearsal, ready to be run."""

    rehearsal: Rehearsal
    archive: Archive
    params: Params
    checkpoint: Path
    plan: Plan = field(default_factory=Plan)

    @property
    def init_times(self) -> list[datetime]:
        """Return the init times of the schedule: the first has a whole history in the archive."""
        step, first, last = self.archive.step, min(self.archive.parts), max(self.archive.parts)
        start = first + (self.rehearsal.history - 1) * step
        count = (last - start) // step + 1
        return [start + i * step for i in range(min(count, self.rehearsal.cycles or count))]

    @property
    def deadline(self) -> timedelta:
        """Return how long after its init time a cycle waits for its history."""
        return timedelta(minutes=self.params.live.late_data.deadline_minutes)

    @property
    def patience(self) -> timedelta:
        """Return how long after its last valid time a truth with gaps is waited for."""
        return timedelta(hours=self.params.live.verify_after_hours)

    def history_of(self, init_time: datetime) -> list[datetime]:
        """Return the times of a history."""
        return [init_time - i * self.archive.step for i in reversed(range(self.rehearsal.history))]

    def expected(self, wakings: Sequence[datetime]) -> list[Expected]:
        """Return how the cycles must end when the schedule is woken at these times."""
        return [self._expected(init_time, wakings) for init_time in self.init_times]

    def forecast_of(self, expected: Expected) -> np.ndarray:
        """Return the forecast (lead, c, y, x) that a cycle must have issued."""
        times = self.history_of(expected.init_time)
        absent = np.full((len(self.archive.names), *self.grid_shape), np.nan, np.float32)
        frames = [
            self.archive.frame(time) if there else absent for time, there in zip(times, expected.present, strict=True)
        ]
        history = np.stack(frames)
        if expected.quality.startswith("fallback"):
            return np.repeat(self._inside_range(latest_valid(history[None])), self.rehearsal.horizon, axis=0)
        forecaster = load(self.checkpoint)
        return np.asarray(forecast_fields(forecaster, history[None], np.array([to_numpy(times[-1])]), None, 0)[0])

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Return rows and columns of the grid."""
        sizes = self.archive.target.grid.sizes
        return sizes["y"], sizes["x"]

    def _inside_range(self, fields: np.ndarray) -> np.ndarray:
        """Return fields (1, c, y, x) with values outside the variables' valid range moved to its ends."""
        grid = self.archive.target.grid
        low = [grid[name].attrs.get("valid_min", -np.inf) for name in self.archive.names]
        high = [grid[name].attrs.get("valid_max", np.inf) for name in self.archive.names]
        return np.asarray(np.clip(fields, *np.array([low, high], np.float32)[:, :, None, None]))

    def _expected(self, init_time: datetime, wakings: Sequence[datetime]) -> Expected:
        times = self.history_of(init_time)
        for now in wakings:
            present = self.plan.present(times, now)
            if now >= init_time and (all(present) or now >= init_time + self.deadline):
                return Expected(init_time, now, present, policy(present, self.params.live.late_data))
        raise ValueError(f"nobody wakes after the deadline of {init_time}")


def policy(present: Sequence[bool], rules: LateData) -> str:
    """Return the quality flag of a cycle whose history has these frames, nothing where it is skipped."""
    missing = list(present).count(False)
    if not missing:
        return "good"
    if present[-1] and missing <= rules.max_missing_frames:
        return "filled"
    return f"fallback_{rules.fallback}" if any(present) and rules.fallback != "none" else ""


def open_archive(rehearsal: Rehearsal) -> Archive:
    """Return the archive, headers read; raise `InputError` where it has too few frames or more than one of a time."""
    options = source_of(rehearsal, rehearsal.archive)
    source = open_source(options)
    parts = source.segments()
    plan = fit_time_axis([part.name for part in parts], [part.times for part in parts], None, None, IngestOptions())
    times = [from_numpy(time) for time in plan.times[plan.slots]]
    if len(times) < rehearsal.history + rehearsal.horizon:
        raise InputError(
            f"{rehearsal.archive}: {len(times)} frames, expected history + horizon = "
            f"{rehearsal.history + rehearsal.horizon} or more"
        )
    target = target_of(source.grid(), options, str(rehearsal.archive))
    step = plan.times[1] - plan.times[0]
    by_time = {time: parts[number] for time, number in zip(times, plan.entries.segment, strict=True)}
    if rehearsal.cycles:
        kept = sorted(by_time)[: rehearsal.history - 1 + rehearsal.cycles + rehearsal.horizon]
        by_time = {time: by_time[time] for time in kept}
    return Archive(by_time, target, timedelta(seconds=int(step / np.timedelta64(1, "s"))))


def source_of(rehearsal: Rehearsal, folder: Path) -> RadarOptions:
    """Return the source that reads such files in `folder`."""
    return RadarOptions(path=str(folder.resolve()), format=rehearsal.format, coarsen=rehearsal.coarsen)


def params_of(rehearsal: Rehearsal, archive: Archive, feed: Path, folder: Path) -> Params:
    """Return the parameters of the schedule; the sections on training are not read."""
    minutes = archive.step / timedelta(minutes=1)
    times = sorted(archive.parts)
    whole = {"start": times[0].replace(tzinfo=None), "end": times[-1].replace(tzinfo=None)}
    source = source_of(rehearsal, feed).model_dump()
    live = {
        "model": str(folder.resolve()),
        "source": source,
        "late_data": {"deadline_minutes": 1.5 * minutes, "max_missing_frames": 1, "fallback": "persistence"},
        "verify_after_hours": PATIENCE * minutes / 60,
        "backfill_hours": 1000 * minutes / 60,
        "retention": {"days": None},
        "drift": {"max_rmse_ratio": 2},  # a reference, and one that often falls back, is no better than persistence
    }
    content: dict[str, Any] = {
        "source": source,
        "prepare": {"splits": {"train": whole, "validation": whole, "test": whole}},
        "sample": {"history": rehearsal.history, "horizon": rehearsal.horizon},
        "train": {"epochs": 1},
        "track": {"experiment": EXPERIMENT},
        "live": live,
        "models": {rehearsal.model: {"kind": rehearsal.model}},
    }
    return Params.model_validate(content)


def write_checkpoint(folder: Path, rehearsal: Rehearsal, archive: Archive) -> None:
    """Write the checkpoint of a reference that was made, without training, for the archive's data."""
    grid, step = archive.target.grid, archive.step
    first = min(archive.parts)
    signature = signature_of(grid, archive.names, np.timedelta64(step), to_numpy(first))
    description = CheckpointConfig(
        model=rehearsal.model,
        kind=rehearsal.model,
        options=models.OPTIONS[rehearsal.model]().model_dump(mode="json"),
        history=rehearsal.history,
        horizon=rehearsal.horizon,
        step_minutes=signature.step_minutes,
        channels=_channels(archive, grid),
        targets=len(archive.names),
        anomalies=False,
        signature=signature,
        crop_cells=None,
        data_digest=f"{rehearsal.archive.name}, {first:%Y-%m-%d}",
    )
    checkpoint.save_checkpoint(folder, description, {}, f"# {rehearsal.model}\n\nFor a rehearsal; not trained.\n")


def _channels(archive: Archive, grid: xr.Dataset) -> tuple[Channel, ...]:
    """Return the channels of a checkpoint, with the range of their values in the archive."""
    low = np.full(len(archive.names), np.inf)
    high = -low
    for time in archive.parts:
        frame = archive.frame(time)
        low, high = np.fmin(low, np.fmin.reduce(frame, (1, 2))), np.fmax(high, np.fmax.reduce(frame, (1, 2)))
    return tuple(
        Channel(
            name,
            grid[name].attrs["units"],
            valid_min=grid[name].attrs.get("valid_min"),
            valid_max=grid[name].attrs.get("valid_max"),
            min=float(low[i]),
            max=float(high[i]),
        )
        for i, name in enumerate(archive.names)
    )
