"""Archives of radar composites, one frame a file, as rain rate in mm/h.

Each format is one function `header(path, options) -> Header` and one `rate(path, y, x, options) -> array`, listed
in `FORMATS`. Time stamps are those of the archive: the *end* of the period of an accumulation, the nominal time of
what is no accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.decoder import decode
from fieldcast.pipeline.sources.files import Header, find, read_headers
from fieldcast.pipeline.sources.missing import without_impossible
from fieldcast.pipeline.sources.radar import bom, fmi, knmi, mch, mrms, odim, radolan
from fieldcast.pipeline.sources.template import fields


class Format(NamedTuple):
    """Reader of one kind of file: names, header, and the field in mm/h with NaN outside the radars' range."""

    patterns: tuple[str, ...]
    header: Callable[[str, RadarOptions], Header]
    rate: Callable[[str, slice, slice, RadarOptions], np.ndarray]


FORMATS: dict[str, Format] = {
    "knmi": Format(("*.h5", "*.hdf5", "*.hdf"), knmi.header, knmi.rate),
    "bom": Format(("*.nc",), bom.header, bom.rate),
    "fmi": Format(("*.pgm.gz", "*.pgm"), fmi.header, fmi.rate),
    "odim": Format(("*.hdf", "*.h5", "*.hdf5"), odim.header, odim.rate),
    "mrms": Format(("*.grib2.gz", "*.grib2"), mrms.header, mrms.rate),
    "radolan": Format(("*-bin.gz", "*-bin"), radolan.header, radolan.rate),
    "mch": Format(("*.gif",), mch.header, mch.rate),
}


@dataclass(frozen=True)
class RadarSource:
    """The files of one archive, in order of their names."""

    options: RadarOptions

    @property
    def _headers(self) -> list[Header]:
        if "headers" not in self.__dict__:  # functools.cached_property holds a lock that all sources share
            files = find(self.options.path, FORMATS[self.options.format].patterns)
            self.__dict__["headers"] = read_headers(self._header, files, self.options.decoding)
        known: list[Header] = self.__dict__["headers"]
        return known

    def segments(self) -> Sequence[RadarFile]:
        """Return one segment a file; raise `InputError` for files that are broken or differ in grid or units."""
        return [RadarFile(header.path, header.times, self.options) for header in self._headers]

    def _header(self, path: str) -> Header:
        return FORMATS[self.options.format].header(path, self.options)

    def grid(self) -> xr.Dataset:
        """Return the template: `rain_rate (0, y, x)` in mm h-1 with y, x and CRS of the first file."""
        return self._headers[0].template


@dataclass(frozen=True)
class RadarFile:
    """One composite."""

    name: str
    times: np.ndarray
    options: RadarOptions

    def read(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        """Return `rain_rate (time, y, x)` in mm h-1 of the wanted cells; raise `InputError` for a broken file."""
        return decode(self.name, self.options.decoding, self._decoded, frames, y, x)

    def _decoded(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        try:
            rate = FORMATS[self.options.format].rate(self.name, y, x, self.options)
        except (OSError, EOFError) as error:
            raise InputError(f"{self.name}: cannot be read ({error}): replace the file") from error
        clean, refused = without_impossible(rate[None][frames], (0.0, None))
        units = {"rain_rate": RAIN_RATE_UNITS}
        return fields(self.times[frames], {"rain_rate": clean}, units, {"rain_rate": refused})
