"""Frames of the observation store by position, and the init times that `prepare` chose; works without torch."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from fieldcast.pipeline.datasets import manifest, store
from fieldcast.pipeline.datasets.finite import refuse_infinite
from fieldcast.pipeline.datasets.schema import TIME
from fieldcast.pipeline.errors import InputError


def read_table(path: Path) -> pd.DataFrame:
    """Return the table of init times and their splits; raise `DamagedError` where it is not as it was written."""
    return pd.read_csv(io.BytesIO(manifest.read_file(path)), parse_dates=["init_time"])


def read_init_times(path: Path, split: str) -> np.ndarray:
    """Return the init times (datetime64[ns], ascending) of `split` from the table that `prepare` wrote.

    Raise `DamagedError` where the table is not as it was written.
    """
    table = read_table(path)
    return table.loc[table["split"] == split, "init_time"].to_numpy(dtype="datetime64[ns]")


def thinned(init_times: np.ndarray, at_most: int | None) -> np.ndarray:
    """Return every n-th of `init_times`, the least n that leaves `at_most`; all where that is None."""
    return init_times if at_most is None else init_times[:: -(-len(init_times) // at_most)]


def time_blocks(field: xr.DataArray) -> Iterator[slice]:
    """Yield the steps of one dask block after the other, so that memory does not grow with the archive."""
    start = 0
    for size in field.chunksizes.get(TIME, (field.sizes[TIME],)):
        yield slice(start, start + size)
        start += size


def sample_steps(position: int | np.ndarray, history: int, horizon: int = 0) -> slice:
    """Return the steps of a sample: `history` of them up to the init time at `position`, `horizon` after it."""
    return slice(position + 1 - history, position + 1 + horizon)


class FrameReader:
    """Frames of the observation store by position; opens the store when first used, so that it can be sent to workers.

    `cache="ram"` decodes all frames once and keeps them; `cache="store"` reads each time, in memory that does not grow.
    """

    def __init__(self, path: Path, channels: Sequence[str], cache: str = "store") -> None:
        self.path, self.channels, self.cache = path, list(channels), cache
        self._open: xr.Dataset | None = None
        self._frames: np.ndarray | None = None

    @property
    def observations(self) -> xr.Dataset:
        """Return the store, lazily opened, without dask."""
        if self._open is None:
            self._open = store.open_observations(self.path, chunks=None)
        return self._open

    def positions(self, times: np.ndarray) -> np.ndarray:
        """Return the positions of `times` on the time axis."""
        axis = self.observations[TIME].values
        positions = np.searchsorted(axis, times)
        if not np.array_equal(axis[np.minimum(positions, axis.size - 1)], times):
            raise InputError(f"{self.path}: some init times are not on its time axis; run the prepare stage again")
        return positions

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return frames start … stop-1 as float32 (t, c, h, w), NaN where missing; `InputError` for infinities."""
        if self.cache == "ram":
            if self._frames is None:
                self._frames = self._decode(0, self.observations.sizes[TIME])
            return self._frames[start:stop]
        return self._decode(start, stop)

    def sample(self, position: int, history: int, horizon: int = 0) -> np.ndarray:
        """Return the frames of the sample whose init time is at `position`, (history + horizon, c, h, w)."""
        steps = sample_steps(position, history, horizon)
        return self.read(steps.start, steps.stop)

    def samples(self, positions: np.ndarray, history: int, horizon: int = 0) -> np.ndarray:
        """Return the samples at several positions, (b, history + horizon, c, h, w)."""
        return np.stack([self.sample(int(position), history, horizon) for position in positions])

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": None, "_frames": None}  # workers open their own

    def _decode(self, start: int, stop: int) -> np.ndarray:
        frames = [self.observations[name][start:stop].values for name in self.channels]
        for name, values in zip(self.channels, frames, strict=True):
            refuse_infinite(self.path, name, values, self.observations[TIME].values[start:stop])
        return np.stack(frames, axis=1)
