"""The live frames: brought in from a feed, kept one NetCDF file each with a checksum, read, and removed by age.

A frame never changes once it is in: the first of a time wins. Its file is durable before its row is in the index, so
that a crash leaves at most a file without a row, which is replaced. Values are those that an ingest of the same
archive would store, bit for bit.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import (
    GriddedOptions,
    IngestOptions,
    MovingMnistOptions,
    RadarOptions,
    SourceOptions,
)
from fieldcast.pipeline.datasets.atomic import make_folder, replace_durable
from fieldcast.pipeline.datasets.schema import CONVENTIONS, GRID_MAPPING, TIME, TIME_UNITS, X, Y, field_names
from fieldcast.pipeline.datasets.signature import DataSignature, compare_signatures, signature_of
from fieldcast.pipeline.datasets.times import to_numpy
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live.archive.durable import failpoint
from fieldcast.pipeline.live.clock import Clock, parse, stamp
from fieldcast.pipeline.live.feed import index as frame_index
from fieldcast.pipeline.live.feed.index import Frame, FrameIndex, Statistics
from fieldcast.pipeline.live.feed.intake import Arrival, Intake, Scan
from fieldcast.pipeline.live.feed.poll import Feed, local_name, public
from fieldcast.pipeline.live.feed.segments import Window
from fieldcast.pipeline.sources.files import file_sha256, is_url

__all__ = ["Frame", "LiveObservations", "Scan"]

COMPRESSION_LEVEL = 4
NOT_OF_VALUES = {"path", "period", "sha256", "download_folder", "storage_options"}  # options of a source


class LiveObservations:
    """The frames in `folder` that `source` brings for models trained on data of `contract`."""

    def __init__(
        self, folder: Path, source: SourceOptions, ingest: IngestOptions, contract: DataSignature, clock: Clock
    ) -> None:
        """Write nothing yet; raise `InputError` for a source without a live feed or with another step."""
        if isinstance(source, MovingMnistOptions):
            raise InputError(f"source.kind is '{source.kind}', which has no live feed: set live.source to another")
        if source.step_minutes not in (None, contract.step_minutes):
            raise InputError(
                f"source.step_minutes is {source.step_minutes}, expected {contract.step_minutes} as in the training "
                f"data: set it to {contract.step_minutes} in live.source"
            )
        self.folder, self.contract = folder, contract
        self._source, self._ingest, self._clock = source, ingest, clock
        self._frames, self._incoming = folder / "frames", folder / "incoming"

    def bring_in(self, since: datetime, until: datetime) -> Scan:
        """Store the frames of the feed from `since` to `until`, both included, that are not there; return what came.

        Raise `InputError` where the feed, or what the store holds, does not fit the model.
        """
        make_folder(self.folder)
        make_folder(self._frames)
        with frame_index.opened(self.folder, create=True) as index:
            index.require_whole()
            return self._look(index, self._incoming, since, until, self._write)

    def peek(self, since: datetime, until: datetime) -> list[datetime]:
        """Return the times that `bring_in` would add; nothing changes on disk, files behind addresses are fetched."""
        with tempfile.TemporaryDirectory() as folder, frame_index.copied(self.folder) as index:
            return self._look(index, Path(folder), since, until, None).added

    def times(self, since: datetime, until: datetime) -> list[datetime]:
        """Return the times of the frames from `since` to `until`, both included, ascending."""
        with frame_index.opened(self.folder) as index:
            return [frame.time for frame in index.frames(since, until)]

    def frames(self, times: Sequence[datetime]) -> dict[datetime, Frame]:
        """Return what is known of the frames of these times, as far as there are any."""
        with frame_index.opened(self.folder) as index:
            return {frame.time: frame for time in times if (frame := index.frame(time))}

    def read(self, times: Sequence[datetime], names: Sequence[str]) -> np.ndarray:
        """Return frames, float32 (time, variable, y, x), NaN for a time without a frame.

        Raise `DamagedError` for a file that is not as it was written, `InputError` for frames of another grid.
        """
        shape = (len(times), len(names), *self.contract.grid_shape)
        values = np.full(shape, np.nan, np.float32)
        with frame_index.opened(self.folder) as index:
            self._require_fitting(index)
            for position, time in enumerate(times):
                frame = index.frame(time)
                content = _checked(frame, index) if frame else None
                if frame and content is not None:
                    with h5py.File(io.BytesIO(content), "r") as file:
                        for channel, name in enumerate(names):
                            values[position, channel] = _field(file, name, frame.path)
        return values

    def grid(self) -> xr.Dataset:
        """Return the frames' template: their variables (0, y, x), y, x, CRS and attributes, from the latest frame."""
        with frame_index.opened(self.folder) as index:
            self._require_fitting(index)
            frame = index.latest()
            content = _checked(frame, index) if frame else None
        if content is not None:
            return _template(content)
        raise InputError(f"{self.folder}: no frame is there yet, expected one from live.source: wait for the feed")

    def discard_damaged(self) -> int:
        """Remove frames whose row or file is not as it was written, to be brought in again; return how many."""
        with frame_index.opened(self.folder) as index:
            return index.repair(_is_whole)

    def prune(self, before: datetime) -> int:
        """Remove the frames older than `before`, and downloads that hold nothing younger; return how many frames."""
        if not self.folder.is_dir():
            return 0
        with frame_index.opened(self.folder) as index:
            removed = index.drop_before(before)  # a file without a row is harmless, a row without a file is not
            failpoint("rows-pruned")
            kept = index.file_names()
            for path in self._frames.iterdir() if self._frames.is_dir() else ():
                if path.suffix == ".partial" or (path.name not in kept and _is_older(path, before)):
                    path.unlink(missing_ok=True)
            self._prune_incoming(index, before)
        return removed

    def _look(
        self,
        index: FrameIndex,
        incoming: Path,
        since: datetime,
        until: datetime,
        write: Callable[[str, bytes], None] | None,
    ) -> Scan:
        """Return what a look at the feed brings into `index`, and by `write` onto the disk."""
        index.repair(lambda path, _: path.is_file())
        index.forget_unless("intake", self._fingerprint())
        self._require_fitting(index)
        window = Window.of(self.contract, since, until, self._clock.now())
        feed = None
        if isinstance(self._source, RadarOptions | GriddedOptions):
            feed = Feed(self._source, self._incoming, incoming, self._clock)

        def keep(arrival: Arrival) -> bool:
            return self._keep(index, arrival, write)

        return Intake(self._source, self._ingest, self.contract, index, window, keep).run(feed)

    def _keep(self, index: FrameIndex, arrival: Arrival, write: Callable[[str, bytes], None] | None) -> bool:
        content = encode(arrival.time, arrival.values, arrival.grid)
        name = f"{stamp(arrival.time)}.nc"
        frame = Frame(
            arrival.time,
            self._frames / name,
            hashlib.sha256(content).hexdigest(),
            arrival.origin,
            self._clock.now(),
            statistics_of(arrival.values),
            arrival.content,
            len(content),
        )
        if index.latest() is None:
            index.set_about("grid", self._note_of(arrival.grid))
        return index.add(frame, lambda: write(name, content) if write else None)

    def _write(self, name: str, content: bytes) -> None:
        replace_durable(self._frames / name, content)
        failpoint("frame-written")

    def _require_fitting(self, index: FrameIndex) -> None:
        """Raise `InputError` unless the frames that are there have the grid and the units of the contract."""
        latest, note = index.latest(), index.about("grid")
        if latest is None:
            return
        if note is None:
            content = _checked(latest, index)
            note = self._note_of(_template(content)) if content is not None else "{}"
        stored = DataSignature.from_dict(self.contract.as_dict() | json.loads(note))
        if difference := compare_signatures(self.contract, stored):
            raise InputError(
                f"{self.folder}: the frames that are there are not those of the model: {difference}: "
                "use another folder for this model, or remove this one"
            )

    def _note_of(self, grid: xr.Dataset) -> str:
        """Return units and grid as the index keeps them, to know what frames are there without opening one."""
        signature = signature_of(grid, field_names(grid), np.timedelta64(1, "m"), np.datetime64(0, "s")).as_dict()
        return json.dumps({name: signature[name] for name in ("units", Y, X, "crs")}, sort_keys=True)

    def _fingerprint(self) -> str:
        """Return a digest of all that decides what is taken from a file: with another, files are looked at again."""
        settings = [
            self._source.model_dump(mode="json", exclude=NOT_OF_VALUES),
            self._ingest.duplicates,
            self.contract.as_dict(),
        ]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _prune_incoming(self, index: FrameIndex, before: datetime) -> None:
        if not self._incoming.is_dir():
            return
        current = public(getattr(self._source, "path", ""))  # the one file of a feed stays
        seen = {key: it for key, it in index.seen().items() if is_url(key)}
        old = [key for key, it in seen.items() if key != current and it.times and max(it.times) < before]
        index.forget(old)
        kept = {local_name(key) for key in seen.keys() - set(old)}
        for path in self._incoming.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)


def encode(time: datetime, values: Mapping[str, np.ndarray], grid: xr.Dataset) -> bytes:
    """Return one frame, (y, x) by variable, as a NetCDF file on `grid`; the same bytes for the same frame."""
    data = {name: ((TIME, Y, X), values[name][None], grid[name].attrs) for name in sorted(values)}
    coords = {name: grid[name].variable for name in (Y, X, GRID_MAPPING) if name in grid.coords}
    moment = (TIME, np.array([to_numpy(time)]), {"standard_name": "time", "axis": "T"})
    dataset = xr.Dataset(data, {TIME: moment, **coords}, {"Conventions": CONVENTIONS, **grid.attrs}).drop_encoding()
    encoding: dict[str, dict[str, Any]] = {
        name: {"zlib": True, "complevel": COMPRESSION_LEVEL, "chunksizes": (1, *values[name].shape)} for name in values
    }
    encoding |= {TIME: {"units": TIME_UNITS, "dtype": "int64"}, Y: {"_FillValue": None}, X: {"_FillValue": None}}
    return bytes(dataset.to_netcdf(None, engine="h5netcdf", encoding=encoding))


def statistics_of(values: Mapping[str, np.ndarray]) -> Statistics:
    """Return share of valid cells, minimum, maximum and mean of each variable; None where no cell is valid."""
    statistics: Statistics = {}
    for name, field in sorted(values.items()):
        valid = field[np.isfinite(field)]
        low, high, mean = (valid.min(), valid.max(), valid.mean(dtype=np.float64)) if valid.size else (None,) * 3
        rest = {"min": low, "max": high, "mean": mean}
        statistics[name] = {"valid_share": valid.size / field.size}
        statistics[name] |= {key: None if value is None else float(value) for key, value in rest.items()}
    return statistics


def _checked(frame: Frame, index: FrameIndex) -> bytes | None:
    """Return the content of a frame's file, None where it has just been removed; raise `DamagedError` for another."""
    try:
        content = frame.path.read_bytes()
    except FileNotFoundError:
        if index.frame(frame.time) is None:
            return None
        found = "that of no file"
    else:
        found = hashlib.sha256(content).hexdigest()
        if found == frame.sha256:
            return content
    raise DamagedError(
        f"{frame.path}: sha256 is {found}, expected {frame.sha256}: delete the file; the next cycle brings the frame "
        f"in again from {frame.origin} if that is still there"
    )


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


def _field(file: h5py.File, name: str, path: Path) -> np.ndarray:
    if name not in file:
        raise InputError(f"{path}: no variable '{name}', found {', '.join(sorted(file))}: correct live.source")
    return np.asarray(file[name][0])


def _template(content: bytes) -> xr.Dataset:
    with xr.open_dataset(io.BytesIO(content), engine="h5netcdf", decode_timedelta=False) as stored:
        dataset = stored.isel({TIME: slice(0, 0)}).drop_vars(TIME).load().drop_encoding()
    for name in dataset.variables:
        dataset[name].attrs = {key: _plain(value) for key, value in dataset[name].attrs.items()}
    return dataset.assign_attrs({key: _plain(value) for key, value in dataset.attrs.items()})


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _is_older(path: Path, before: datetime) -> bool:
    """Return whether a frame's file is of a time before that; other files are not."""
    try:
        return parse(path.stem) < before
    except ValueError:
        return False
