"""Small feeds, and the live observations that are brought in from them."""

import shutil
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions, IngestOptions, RadarOptions, SourceOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.schema import field_names
from fieldcast.pipeline.datasets.signature import DataSignature, signature_of
from fieldcast.pipeline.datasets.times import from_numpy
from fieldcast.pipeline.ingest import ingest
from fieldcast.pipeline.live.clock import Clock
from fieldcast.pipeline.live.feed.limits import FeedRules
from fieldcast.pipeline.live.feed.store import LiveObservations
from tests.live.clocks import SimulatedClock
from tests.sources import archives

START = datetime(2024, 6, 1, tzinfo=UTC)
LATER = START + timedelta(days=1)


def at(minutes: float) -> datetime:
    """Return a time so many minutes after the start."""
    return START + timedelta(minutes=minutes)


def frame(number: int, height: int = 5, width: int = 7) -> np.ndarray:
    """Return counts (y, x) that differ from frame to frame, five of them missing (-1)."""
    counts = np.random.default_rng(number).integers(0, 400, (height, width)).astype(np.int16)
    counts[:2, 1:3] = counts[number % height, 5] = -1
    return counts


def write_bom(
    folder: Path, minutes: int, counts: np.ndarray | None = None, name: str = "", units: str = "kg m-2"
) -> Path:
    """Write one radar file of 10 minutes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or f"rain_{minutes:04d}.nc")
    text = at(minutes).strftime("%Y-%m-%dT%H:%M:%S")
    return archives.write_bom(path, text, frame(minutes // 10) if counts is None else counts, units)


def write_gridded(
    path: Path, minutes: Sequence[float], fields: np.ndarray | None = None, units: str = "mm h-1", shift: float = 0.0
) -> Path:
    """Write one NetCDF file with frames (time, y, x) of `rain`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.stack([frame(int(it)) for it in minutes]).astype(np.float32) if fields is None else fields
    times = np.datetime64(START.replace(tzinfo=None), "ns") + (np.array(minutes) * 60).astype("timedelta64[s]")
    coords = {
        axis: (axis, np.arange(size) + shift, {"units": "km"})
        for axis, size in zip("yx", values.shape[1:], strict=True)
    }
    rain = (("time", "y", "x"), np.where(values < 0, np.nan, values).astype(np.float32), {"units": units})
    xr.Dataset({"rain": rain}, {"time": times, **coords}).to_netcdf(path, engine="h5netcdf")
    return path


def bom(path: object, **more: Any) -> RadarOptions:
    return RadarOptions.model_validate({"path": str(path), "format": "bom", **more})


def gridded(path: object, **more: Any) -> GriddedOptions:
    return GriddedOptions.model_validate({"path": str(path), "variables": ["rain"], **more})


def ingested(source: SourceOptions, folder: Path, **rules: Any) -> xr.Dataset:
    """Return what an ingest of the source stores."""
    shutil.rmtree(folder, ignore_errors=True)
    ingest(source, IngestOptions(shard_frames=5, **rules), folder)
    return store.open_observations(folder).load()


def contract(observations: xr.Dataset) -> DataSignature:
    """Return the signature of a model trained on these observations."""
    times = observations.time.values
    return signature_of(observations, field_names(observations), times[1] - times[0], times[0])


def live_of(
    folder: Path,
    source: SourceOptions,
    expected: dict[str, Any],
    now: Clock | None = None,
    look: FeedRules | None = None,
    **rules: Any,
):
    """Return live observations, a day after the start unless a clock says otherwise."""
    clock = now or SimulatedClock(LATER)
    return LiveObservations(folder, source, IngestOptions(**rules), expected, clock, look or FeedRules())


def require_equal(live: LiveObservations, observations: xr.Dataset) -> None:
    """Assert that the live frames are those of an ingested store, bit for bit, and no others."""
    names = field_names(observations)
    times = [from_numpy(time) for time in observations.time.values]
    there = [time for time, present in zip(times, observations.frame_present.values, strict=True) if present]
    assert live.times(times[0], times[-1]) == there
    stored = np.stack([observations[name].values for name in names], axis=1)
    np.testing.assert_array_equal(live.read(times, names).view(np.uint32), stored.view(np.uint32))
