"""The live frames: fetched from a feed, kept one NetCDF file each with a checksum, read, and removed by age.

A stored frame never changes: the first of a time wins. Its file is durable before its row is in the index, so
that a crash leaves at most a file without a row, which is replaced. Values are those that an ingest of the same
archive would store, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path

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
from fieldcast.pipeline.datasets.signature import DataSignature, compare_signatures
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live.archive.durable import failpoint
from fieldcast.pipeline.live.clock import Clock, parse
from fieldcast.pipeline.live.feed import frame_file
from fieldcast.pipeline.live.feed.fetch import Fetch
from fieldcast.pipeline.live.feed.index import Frame, FrameIndex
from fieldcast.pipeline.live.feed.limits import FeedRules
from fieldcast.pipeline.live.feed.poll import Feed, local_name, public
from fieldcast.pipeline.live.feed.segments import FetchReport, Window
from fieldcast.pipeline.sources.files import file_sha256, is_url

NO_LIMITS = FeedRules()  # of values
NOT_OF_VALUES = {"path", "period", "decoding", "sha256", "download_folder", "storage_options"}  # options of a source


class LiveObservations:
    """The frames in `folder`, fetched from `source` for models trained on data of `contract`."""

    def __init__(
        self,
        folder: Path,
        source: SourceOptions,
        ingest: IngestOptions,
        contract: DataSignature,
        clock: Clock,
        rules: FeedRules = NO_LIMITS,
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
        self._source, self._ingest, self._clock, self._rules = source, ingest, clock, rules
        self._frames, self._incoming = folder / "frames", folder / "incoming"

    def fetch_frames(self, since: datetime, until: datetime) -> FetchReport:
        """Store the frames of the feed from `since` to `until`, both included, that the store lacks.

        Raise `InputError` where the feed, or what the store holds, does not fit the model.
        """
        make_folder(self._frames)
        with FrameIndex(self.folder, create=True) as index:
            index.check_pages(quick=True)
            return self._fetch(index, self._incoming, since, until, _write)

    def peek(self, since: datetime, until: datetime) -> list[datetime]:
        """Return the times that `fetch_frames` would add; download, but change nothing in the folder."""
        with tempfile.TemporaryDirectory() as folder, FrameIndex(self.folder, copy=True) as index:
            return self._fetch(index, Path(folder), since, until, lambda *_: None).added

    def times(self, since: datetime, until: datetime) -> list[datetime]:
        """Return the times of the frames from `since` to `until`, both included, ascending."""
        with FrameIndex(self.folder) as index:
            return [frame.time for frame in index.frames(since, until)]

    @property
    def is_simulated(self) -> bool:
        """Return whether frames are made for any time that is asked for."""
        return not isinstance(self._source, RadarOptions | GriddedOptions)

    def newest(self) -> datetime | None:
        """Return the time of the newest frame, None where there is none."""
        with FrameIndex(self.folder) as index:
            frame = index.latest()
        return frame.time if frame else None

    def frames(self, times: Sequence[datetime]) -> dict[datetime, Frame]:
        """Return the entries of these times in the index, as far as there are any."""
        with FrameIndex(self.folder) as index:
            return {frame.time: frame for time in times if (frame := index.frame(time))}

    def read(self, times: Sequence[datetime], names: Sequence[str]) -> np.ndarray:
        """Return frames, float32 (time, variable, y, x), NaN for a time without a frame.

        Raise `DamagedError` for a file that is not as it was written, `InputError` for frames of another grid.
        """
        shape = (len(times), len(names), *self.contract.grid_shape)
        values = np.full(shape, np.nan, np.float32)
        with FrameIndex(self.folder) as index:
            self._require_fitting(index)
            for position, time in enumerate(times):
                frame = index.frame(time)
                content = _checked(frame, index) if frame else None
                if frame and content is not None:
                    values[position] = frame_file.fields_of(content, list(names), frame.path)
        return values

    def grid(self) -> xr.Dataset:
        """Return the frames' template: their variables (0, y, x), y, x, CRS and attributes, from the latest frame."""
        with FrameIndex(self.folder) as index:
            self._require_fitting(index)
            frame = index.latest()
            content = _checked(frame, index) if frame else None
        if content is not None:
            return frame_file.template_of(content)
        raise InputError(f"{self.folder}: no frame is there yet, expected one from live.source: wait for the feed")

    def discard_damaged(self) -> int:
        """Remove frames whose row or file is not as it was written, to be fetched again; return how many."""
        with FrameIndex(self.folder) as index:
            return index.repair(_is_whole)

    def prune(self, before: datetime) -> int:
        """Remove the frames older than `before`, and downloads that hold nothing younger; return how many frames."""
        if not self.folder.is_dir():
            return 0
        with FrameIndex(self.folder) as index:
            removed = index.drop_before(before)  # a file without a row is harmless, a row without a file is not
            failpoint("rows-pruned")
            kept = index.file_names()
            for path in self._frames.iterdir() if self._frames.is_dir() else ():
                if path.suffix == ".partial" or (path.name not in kept and _is_older(path, before)):
                    path.unlink(missing_ok=True)
            self._prune_incoming(index, before)
        return removed

    def _fetch(
        self,
        index: FrameIndex,
        incoming: Path,
        since: datetime,
        until: datetime,
        write: Callable[[Path, bytes], None],
    ) -> FetchReport:
        """Return the outcome of a fetch into `index` and, by `write`, onto the disk."""
        index.repair(lambda path, _: path.is_file())
        index.forget_unless("intake", self._fingerprint())
        self._require_fitting(index)
        window = Window.of(self.contract, since, until, self._clock.now())
        feed = None
        if isinstance(self._source, RadarOptions | GriddedOptions):
            feed = Feed(self._source, self._incoming, incoming, self._clock, self._rules)
        return Fetch(
            self._source, self._ingest, self.contract, index, window, self._frames, write, self._rules.values
        ).run(feed)

    def _require_fitting(self, index: FrameIndex) -> None:
        """Raise `InputError` unless the frames that are there have the grid and the units of the contract."""
        latest, grid = index.latest(), index.fact("grid")
        if latest is None:
            return
        if grid is None:
            content = _checked(latest, index)
            grid = frame_file.grid_of(frame_file.template_of(content)) if content is not None else "{}"
        stored = DataSignature.from_dict(self.contract.as_dict() | json.loads(grid))
        if difference := compare_signatures(self.contract, stored):
            raise InputError(
                f"{self.folder}: the frames that are there are not those of the model: {difference}: "
                "use another folder for this model, or remove this one"
            )

    def _fingerprint(self) -> str:
        """Return a digest of all that decides what is taken from a file: with another, files are read again."""
        settings = [
            self._source.model_dump(mode="json", exclude=NOT_OF_VALUES),
            self._ingest.duplicates,
            self.contract.as_dict(),
            dict(self._rules.values),
        ]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def _prune_incoming(self, index: FrameIndex, before: datetime) -> None:
        if not self._incoming.is_dir():
            return
        current = public(getattr(self._source, "path", ""))  # the one file of a feed stays
        known = {key: candidate.times for key, candidate in index.candidates().items() if is_url(key)}
        old = [key for key, times in known.items() if key != current and times and max(times) < before]
        index.forget(old)
        kept = {local_name(key) for key in known.keys() - set(old)}
        for path in self._incoming.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    replace_durable(path, content)
    failpoint("frame-written")


def _checked(frame: Frame, index: FrameIndex) -> bytes | None:
    """Return the content of a frame's file, None where it has just been removed; raise `DamagedError` for another."""
    try:
        content = frame.path.read_bytes()
    except FileNotFoundError:
        if index.frame(frame.time) is None:
            return None
        sha256 = "that of no file"
    else:
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 == frame.sha256:
            return content
    raise DamagedError(
        f"{frame.path}: sha256 is {sha256}, expected {frame.sha256}: delete the file; the next cycle fetches the frame "
        f"again from {frame.origin} if that is still there"
    )


def _is_whole(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


def _is_older(path: Path, before: datetime) -> bool:
    """Return whether a frame's file is of a time before that; other files are not."""
    try:
        return parse(path.stem) < before
    except ValueError:
        return False
