"""Stage `ingest`: source -> data/observations.zarr, one regular, sharded store in physical units."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr

from fieldcast.pipeline import config
from fieldcast.pipeline.config.sources import IngestOptions, SourceOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.atomic import replacing
from fieldcast.pipeline.datasets.parallel import run_blocks
from fieldcast.pipeline.datasets.paths import OBSERVATIONS
from fieldcast.pipeline.datasets.schema import TIME, X, Y, field_names
from fieldcast.pipeline.errors import InputError, run_stage
from fieldcast.pipeline.sources import Segment, open_source, time_axis_of
from fieldcast.pipeline.sources.target import Target, read_frames, target_of
from fieldcast.pipeline.sources.time_axis import TimeAxis


@dataclass(frozen=True)
class SegmentFrames:
    """Frames of one segment that belong to one shard, and their positions in it."""

    segment: Segment
    frames: np.ndarray
    slots: np.ndarray


@dataclass(frozen=True)
class Shard:
    """What a shard was written with."""

    cells: int  # valid ones, of all variables
    refused: dict[str, np.ndarray]  # by variable `(time,)`: values of the archive that were refused as impossible


def ingest(
    source_options: SourceOptions, ingest_options: IngestOptions, out: Path, scheduler: str | None = None
) -> None:
    """Write the source's frames to the store `out`, which appears only when it is complete.

    Memory is bounded by the shards that workers hold at once. `scheduler` is None for threads,
    'synchronous', or the address of a dask.distributed scheduler whose workers see the same files. Raise `InputError`
    for whatever is wrong with the source.
    """
    source = open_source(source_options)
    time_axis = time_axis_of(source, source_options, ingest_options)
    target = target_of(source.grid(), source_options, f"the source ({source_options.kind})")
    with replacing(out) as partial:
        store.create_observations(partial, target.grid, time_axis.times, time_axis.present, ingest_options.shard_frames)
        shards = _fill(partial, target, time_axis, source.segments(), ingest_options.shard_frames, scheduler)
        if not sum(shard.cells for shard in shards):
            raise InputError(
                f"source ({source_options.kind}): every cell of all {time_axis.times.size} frames is missing: "
                "choose another period, crop or archive"
            )
        refused = {name: np.concatenate([shard.refused[name] for shard in shards]) for name in shards[0].refused}
        store.add_refused(partial, {name: counts for name, counts in refused.items() if counts.any()})
        store.finish(partial)
        store.open_observations(partial).close()


def write_shard(path: Path, target: Target, start: int, times: np.ndarray, frames: Sequence[SegmentFrames]) -> Shard:
    """Read one shard's frames, bring them to the target grid, write them to `path`; return what they are.

    Where two frames share a time, the cells that the first lacks come from the next.
    """
    shape = (times.size, target.grid.sizes[Y], target.grid.sizes[X])
    shard = {name: np.full(shape, np.nan, np.float32) for name in field_names(target.grid)}
    refused = {name: np.zeros(times.size, np.int32) for name in shard}
    for some in frames:
        read = read_frames(some.segment, some.frames, target)
        for name, values in shard.items():
            np.add.at(refused[name], some.slots, read.refused.get(name, 0))
            for slot, frame in zip(some.slots, read.values[name], strict=True):
                np.copyto(values[slot], frame, where=np.isnan(values[slot]))
    data = {name: ((TIME, Y, X), values) for name, values in shard.items()}
    store.write_block(path, start, xr.Dataset(data))
    return Shard(sum(int(np.isfinite(values).sum()) for values in shard.values()), refused)


def _fill(
    path: Path, target: Target, axis: TimeAxis, segments: Sequence[Segment], shard_frames: int, scheduler: str | None
) -> list[Shard]:
    """Write every shard; return them in order."""
    starts = range(0, axis.times.size, shard_frames)
    jobs = [(path, target, *_shard(axis, segments, slice(start, start + shard_frames))) for start in starts]
    return run_blocks(write_shard, jobs, scheduler=scheduler, description="ingest", unit="shard")


def _shard(axis: TimeAxis, segments: Sequence[Segment], steps: slice) -> tuple[int, np.ndarray, list[SegmentFrames]]:
    """Return start, times and frames of the shard that holds these steps of the axis, segment by segment."""
    first, last = np.searchsorted(axis.slots, [steps.start, steps.stop])
    entries, slots = axis.entries[first:last], axis.slots[first:last] - steps.start
    changes = np.flatnonzero(np.diff(entries.segment)) + 1
    runs = np.split(np.arange(slots.size), changes) if slots.size else []
    frames = [SegmentFrames(segments[entries.segment[run[0]]], entries.frame[run], slots[run]) for run in runs]
    return steps.start, axis.times[steps], frames


def main() -> None:
    """Ingest the source of params.yaml."""
    params = config.load()
    ingest(params.source, params.ingest, OBSERVATIONS, params.dask.scheduler)


if __name__ == "__main__":
    run_stage(main)
