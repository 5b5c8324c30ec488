"""The set-up of a replay and its expected end: archive, model, parameters, and the forecast each cycle must make.

Nothing here uses the code that runs the cycles: expectations follow from the archive and the plan of faults alone.
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
from fieldcast.pipeline.forecasting.forecaster import forecast_fields, load
from fieldcast.pipeline.sources import Segment, open_source
from fieldcast.pipeline.sources.target import Target, read_frames, target_of
from fieldcast.pipeline.sources.time_axis import fit_time_axis
from tests.live.replay.faults import Plan

CHECKPOINT, FEED, LIVE, EXPERIMENT = "checkpoint", "feed", "live", "replay"
PATIENCE = 6  # steps after the last valid time after which missing observations are not waited for
WAKEUPS = 5  # in a step
KEPT_FRAMES = 32


@dataclass(frozen=True)
class ReplayOptions:
    """Settings of a replay."""

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
        fields = read_frames(self.parts[time], np.array([0]), self.target).values
        return np.stack([fields[name][0] for name in self.names])


@dataclass(frozen=True)
class Expected:
    """The end that a cycle must have: the frames present when it is decided, and the quality flag; none: skipped."""

    init_time: datetime
    at: datetime
    present: list[bool]
    quality: str

    @property
    def missing(self) -> int:
        """Return the number of frames of the history that are not there."""
        return self.present.count(False)


@dataclass(frozen=True)
class ReplayConfig:
    """A replay, ready to be run."""

    options: ReplayOptions
    archive: Archive
    params: Params
    checkpoint: Path
    plan: Plan = field(default_factory=Plan)

    @property
    def init_times(self) -> list[datetime]:
        """Return the init times of the schedule: the first has a whole history in the archive."""
        step, first, last = self.archive.step, min(self.archive.parts), max(self.archive.parts)
        start = first + (self.options.history - 1) * step
        count = (last - start) // step + 1
        return [start + i * step for i in range(min(count, self.options.cycles or count))]

    @property
    def deadline(self) -> timedelta:
        """Return the time after the init time for which a cycle waits for its history."""
        return timedelta(minutes=self.params.live.late_data.deadline_minutes)

    @property
    def patience(self) -> timedelta:
        """Return the time after the last valid time for which missing observations are waited for."""
        return timedelta(hours=self.params.live.verify_after_hours)

    def history_times(self, init_time: datetime) -> list[datetime]:
        """Return the times of a history."""
        return [init_time - i * self.archive.step for i in reversed(range(self.options.history))]

    def expected(self, wakeups: Sequence[datetime]) -> list[Expected]:
        """Return the expected ends of the cycles when the schedule wakes at these times."""
        return [self._expected(init_time, wakeups) for init_time in self.init_times]

    def forecast_of(self, expected: Expected) -> np.ndarray:
        """Return the forecast (lead, c, y, x) that a cycle must have issued."""
        times = self.history_times(expected.init_time)
        absent = np.full((len(self.archive.names), *self.grid_shape), np.nan, np.float32)
        frames = [
            self.archive.frame(time) if there else absent for time, there in zip(times, expected.present, strict=True)
        ]
        history = np.stack(frames)
        if expected.quality.startswith("fallback"):
            return np.repeat(self._inside_range(latest_valid(history[None])), self.options.horizon, axis=0)
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

    def _expected(self, init_time: datetime, wakeups: Sequence[datetime]) -> Expected:
        times = self.history_times(init_time)
        for now in wakeups:
            present = self.plan.present(times, now)
            if now >= init_time and (all(present) or now >= init_time + self.deadline):
                return Expected(init_time, now, present, policy(present, self.params.live.late_data))
        raise ValueError(f"no wakeup after the deadline of {init_time}")


def policy(present: Sequence[bool], rules: LateData) -> str:
    """Return the quality flag of a cycle whose history has these frames, nothing where it is skipped."""
    missing = list(present).count(False)
    if not missing:
        return "good"
    if present[-1] and missing <= rules.max_missing_frames:
        return "filled"
    return f"fallback_{rules.fallback}" if any(present) and rules.fallback != "none" else ""


def open_archive(options: ReplayOptions) -> Archive:
    """Return the archive, headers read; raise `InputError` where it has too few frames or more than one of a time."""
    files = source_of(options, options.archive)
    source = open_source(files)
    parts = source.segments()
    plan = fit_time_axis([part.name for part in parts], [part.times for part in parts], None, None, IngestOptions())
    times = [from_numpy(time) for time in plan.times[plan.slots]]
    if len(times) < options.history + options.horizon:
        raise InputError(
            f"{options.archive}: {len(times)} frames, expected history + horizon = "
            f"{options.history + options.horizon} or more"
        )
    target = target_of(source.grid(), files, str(options.archive))
    step = plan.times[1] - plan.times[0]
    by_time = {time: parts[number] for time, number in zip(times, plan.entries.segment, strict=True)}
    if options.cycles:
        kept = sorted(by_time)[: options.history - 1 + options.cycles + options.horizon]
        by_time = {time: by_time[time] for time in kept}
    return Archive(by_time, target, timedelta(seconds=int(step / np.timedelta64(1, "s"))))


def source_of(options: ReplayOptions, folder: Path) -> RadarOptions:
    """Return the source that reads such files in `folder`."""
    return RadarOptions(path=str(folder.resolve()), format=options.format, coarsen=options.coarsen)


def params_of(options: ReplayOptions, archive: Archive, feed: Path, folder: Path) -> Params:
    """Return the parameters of the schedule; the sections on training are not read."""
    minutes = archive.step / timedelta(minutes=1)
    times = sorted(archive.parts)
    ends = [times[i].replace(tzinfo=None) for i in (0, 1, 2, 3, 4, -1)]
    splits = {
        name: {"start": ends[2 * i], "end": ends[2 * i + 1]} for i, name in enumerate(("train", "validation", "test"))
    }  # which nothing reads
    source = source_of(options, feed).model_dump()
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
        "prepare": {"splits": splits},
        "sample": {"history": options.history, "horizon": options.horizon},
        "train": {"epochs": 1},
        "track": {"experiment": EXPERIMENT},
        "live": live,
        "models": {options.model: {"kind": options.model}},
    }
    return Params.model_validate(content)


def write_checkpoint(folder: Path, options: ReplayOptions, archive: Archive) -> None:
    """Write the checkpoint of a reference for the archive's data, without training."""
    grid, step = archive.target.grid, archive.step
    first = min(archive.parts)
    signature = signature_of(grid, archive.names, np.timedelta64(step), to_numpy(first))
    config = CheckpointConfig(
        model=options.model,
        kind=options.model,
        options=models.OPTIONS[options.model]().model_dump(mode="json"),
        history=options.history,
        horizon=options.horizon,
        step_minutes=signature.step_minutes,
        channels=_channels(archive, grid),
        targets=len(archive.names),
        anomalies=False,
        signature=signature,
        crop_cells=None,
        data_digest=f"{options.archive.name}, {first:%Y-%m-%d}",
    )
    checkpoint.save_checkpoint(folder, config, {}, f"# {options.model}\n\nFor a replay; not trained.\n")


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
