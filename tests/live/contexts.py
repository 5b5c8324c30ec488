"""Small live projects: a reference checkpoint without training, a simulated feed, and a clock that tests set."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.config.sources import StormsOptions
from fieldcast.pipeline.datasets.signature import Channel, signature_of
from fieldcast.pipeline.datasets.times import to_numpy
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig, save_checkpoint
from fieldcast.pipeline.forecasting.forecaster import build_network
from fieldcast.pipeline.live.clock import Clock
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.sources import open_source
from fieldcast.pipeline.sources.storms import StormsSource
from fieldcast.pipeline.sources.target import target_of
from tests.conftest import merged
from tests.live import feeds
from tests.live.clocks import SimulatedClock

START = datetime(2024, 6, 1, 6, 0, tzinfo=UTC)
SOURCE: dict[str, Any] = {
    "kind": "storms",
    "cells": 16,
    "event_minutes": 60,
    "event_every_minutes": 60,
    "events": 1_000_000,
    "start": "2024-01-01T00:00",
}
PARAMS: dict[str, Any] = {
    "source": SOURCE,
    "prepare": {
        "splits": {
            "train": {"start": "2024-01-01T00:00", "end": "2024-01-02T00:00"},
            "validation": {"start": "2024-01-03T00:00", "end": "2024-01-04T00:00"},
            "test": {"start": "2024-01-05T00:00", "end": "2024-01-06T00:00"},
        }
    },
    "sample": {"history": 3, "horizon": 4},
    "train": {"epochs": 1},
    "verify": {"thresholds": {"rain_rate": [0.5, 2]}},
    "track": {"experiment": "small"},
    "live": {"model": "checkpoint", "reserve_megabytes": 1, "lock_wait_seconds": 5},
    "models": {"persistence": {"kind": "persistence"}},
}


def params(changes: dict[str, Any] | None = None) -> Params:
    """Return parameters of a small context, with `changes` to the section `live`."""
    return Params.model_validate(merged(PARAMS, {"live": changes or {}}))


def checkpoint_config(model: str, source: dict[str, Any] = SOURCE, **changes: Any) -> CheckpointConfig:
    """Return the configuration of a checkpoint for the source's data."""
    options = StormsOptions(**source)
    storms = StormsSource(options)
    grid = target_of(storms.grid(), options, "storms").grid
    signature = signature_of(grid, ["rain_rate"], np.timedelta64(5, "m"), np.datetime64("2024-01-01", "ns"))
    channel = Channel("rain_rate", "mm h-1", "log", 0.5, valid_min=0.0, mean=0.3, scale=0.6, max=100.0)
    facts: dict[str, Any] = {
        "model": model,
        "kind": model,
        "options": {},
        "history": 3,
        "horizon": 4,
        "step_minutes": 5,
        "channels": (channel,),
        "targets": 1,
        "anomalies": False,
        "signature": signature,
        "crop_cells": None,
        "data_digest": "none",
    }
    return CheckpointConfig(**(facts | changes))


def write_reference(folder: Path, model: str = "persistence", source: dict[str, Any] = SOURCE) -> Path:
    """Write the checkpoint of a reference for the source's data and return its folder."""
    save_checkpoint(folder, checkpoint_config(model, source), {}, "")
    return folder


def write_learned(folder: Path, model: str, options: dict[str, Any]) -> Path:
    """Write the checkpoint of a small network with random weights, which forecasts by tiles, and return its folder."""
    import torch

    config = checkpoint_config(model, options=options, crop_cells=12)
    torch.manual_seed(5)
    network = build_network(config, np.full((1, 1, 1, 1), 0.3, np.float32), np.full(1, 0.6, np.float32))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))  # untrained it would be persistence
    save_checkpoint(folder, config, {name: it.numpy() for name, it in network.state_dict().items()}, "")
    return folder


def live_context(root: Path, now: datetime = START, changes: dict[str, Any] | None = None) -> LiveContext:
    """Return a context in `root` whose clock shows `now`; its checkpoint is written where there is none."""
    if not (root / "checkpoint").exists():
        write_reference(root / "checkpoint")
    return LiveContext(params(changes), root / "live", SimulatedClock(now), root)


def radar_context(root: Path, clock: Clock, changes: dict[str, Any] | None = None) -> LiveContext:
    """Return a context in `root` whose feed is the radar files, ten minutes apart, of `root/feed`."""
    options = feeds.bom(root / "feed")
    grid = target_of(open_source(options).grid(), options, "feed").grid
    signature = signature_of(grid, ["rain_rate"], np.timedelta64(10, "m"), to_numpy(feeds.START))
    config = checkpoint_config("persistence", signature=signature, step_minutes=10)
    save_checkpoint(root / "checkpoint", config, {}, "")
    values = params({"source": options.model_dump(), "model": "checkpoint", **(changes or {})})
    return LiveContext(values, root / "live", clock, root)


def minutes(count: float) -> timedelta:
    """Return a span of time."""
    return timedelta(minutes=count)
