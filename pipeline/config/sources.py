"""Sections on the source, one class a kind, and on ingest. No heavy import: validated before any work.

Units are in the names. Times are UTC. Cells count on the source's own grid, from its first row and column.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from fieldcast.pipeline.config.section import (
    DAY_MINUTES,
    Cells,
    Count,
    Folder,
    Minutes,
    Name,
    Section,
    Seed,
    Text,
    Time,
)
from fieldcast.pipeline.errors import keep_secret


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _whole_seconds(minutes: float) -> float:
    if abs(60 * minutes - round(60 * minutes)) > 1e-6 or minutes < 1 / 60:
        raise ValueError(f"{minutes:g} minutes are no whole number of seconds")
    return minutes


def _positive(z_r: tuple[float, float]) -> tuple[float, float]:
    if not 0 < min(z_r) <= max(z_r) <= 1e6:
        raise ValueError(f"z_r is {list(z_r)}, expected two positive numbers such as [223, 1.53]")
    return z_r


Moment = Annotated[Time, AfterValidator(_utc)]
Range = tuple[float, float]
ZR = Annotated[Range, AfterValidator(_positive)]  # a and b of Z = a R^b
RESERVED = {"time", "y", "x", "latitude", "longitude", "spatial_ref", "frame_present"}  # of stores
RESERVED |= {"init_time", "lead_time", "valid_time", "member"}
MAX_WIND_M_S = 200
StepMinutes = Annotated[  # a whole number of seconds: 2.5 is 150 s
    Minutes | Annotated[float, Field(gt=0, le=366 * DAY_MINUTES), AfterValidator(_whole_seconds)],
    Field(union_mode="left_to_right"),
]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]


class Crop(Section):
    """The cells to keep, `[start, stop)` on each axis of the source grid, before coarsening."""

    y: tuple[int, int]
    x: tuple[int, int]

    @model_validator(mode="after")
    def _holds_cells(self) -> Crop:
        for axis, (start, stop) in (("y", self.y), ("x", self.x)):
            if not 0 <= start < stop:
                raise ValueError(f"{axis} is [{start}, {stop}], expected 0 <= start < stop")
        return self


class SharedOptions(Section):
    """Options of every source."""

    period: tuple[Moment, Moment] | None = None  # first and last time to keep, both inclusive
    crop: Crop | None = None
    coarsen: Cells = 1  # mean over n x n cells; NaN where less than half are valid; a rest is cut off
    step_minutes: StepMinutes | None = None  # a multiple of the archive's steps: frames between are left out

    @model_validator(mode="after")
    def _period_holds_time(self) -> SharedOptions:
        if self.period and self.period[0] >= self.period[1]:
            first, last = (moment.isoformat(" ") for moment in self.period)
            raise ValueError(f"period is empty: [{first}, {last}], expected the first time before the last")
        return self


class StormsOptions(SharedOptions):
    """Simulated rain; the process is described in `sources/storms.py`."""

    kind: Literal["storms"] = "storms"
    seed: Seed = 0
    start: Moment = datetime(2020, 1, 1)  # first frame of the first event
    events: Count = 60
    event_minutes: Minutes = 240  # simulated time of one event
    event_every_minutes: Minutes = 360  # from one event's start to the next; the time between events is missing
    step_minutes: Minutes = 5
    cells: int = Field(default=64, ge=16, le=4096)  # the domain is cells x cells
    spacing_km: float = Field(default=2.0, gt=0, le=1000)
    wind_speed_m_s: Range = (5.0, 15.0)  # an event's mean wind is drawn from this range
    wet_fraction: Range = (0.15, 0.35)  # likewise the wet share of the domain at an event's height
    lifetime_minutes: float = Field(300.0, gt=0, le=1e6)  # e-folding time of structures of 32 km, moving with the wind
    orography: float = Field(0.3, ge=0, le=100)  # strength of the enhancement over windward slopes; 0 is flat land

    @model_validator(mode="after")
    def _events_fit(self) -> StormsOptions:
        if self.event_minutes % self.step_minutes or self.event_minutes < 2 * self.step_minutes:
            raise ValueError(
                f"event_minutes is {self.event_minutes}, expected a multiple (2 or more) of "
                f"step_minutes {self.step_minutes}"
            )
        if self.event_every_minutes % self.step_minutes or self.event_every_minutes < self.event_minutes:
            raise ValueError(
                f"event_every_minutes is {self.event_every_minutes}, expected a multiple of step_minutes "
                f"{self.step_minutes}, at least event_minutes {self.event_minutes}"
            )
        if not 0 <= self.wind_speed_m_s[0] <= self.wind_speed_m_s[1] <= MAX_WIND_M_S:
            raise ValueError(
                f"wind_speed_m_s is {list(self.wind_speed_m_s)}, expected 0 <= low <= high <= {MAX_WIND_M_S}"
            )
        if not 0 < self.wet_fraction[0] <= self.wet_fraction[1] < 1:
            raise ValueError(f"wet_fraction is {list(self.wet_fraction)}, expected 0 < low <= high < 1")
        return self


class Decoding(Section):
    """Bounds of a child process, in which the files of others are decoded: for the header or the fields of one file."""

    max_seconds: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    max_megabytes: Annotated[float, Field(ge=16, le=1e6)] = 4096.0  # beyond what the child needs without a file


class RadarOptions(SharedOptions):
    """An archive of radar composites, one frame a file; read as rain rate in mm/h."""

    kind: Literal["radar"] = "radar"
    path: Text  # a folder (searched in depth) or a glob
    format: Literal["knmi", "bom", "fmi", "odim", "mrms", "radolan", "mch"]
    quantity: Literal["RATE", "ACRR", "DBZH"] | None = None  # of a file that has several (odim); by default RATE
    decoding: Decoding = Decoding()
    z_r: ZR | None = None  # a and b of Z = a R^b for reflectivity; default: fmi (223, 1.53), odim (200, 1.6)

    @model_validator(mode="after")
    def _quantity_has_an_effect(self) -> RadarOptions:
        if self.quantity and self.format != "odim":
            raise ValueError(f"quantity is for format odim, not for {self.format}: leave it out")
        return self

    @model_validator(mode="after")
    def _z_r_has_an_effect(self) -> RadarOptions:
        if self.z_r and not (self.format == "fmi" or self.quantity == "DBZH"):
            raise ValueError(f"z_r is for reflectivity (fmi, or quantity DBZH), not for {self.format}: leave it out")
        return self


class GriddedOptions(SharedOptions):
    """NetCDF, GRIB or Zarr on a regular grid, any CF time."""

    kind: Literal["gridded"] = "gridded"
    path: Text  # a file, folder, glob, Zarr store, or a URL (https, s3, …) of one file or store
    variables: Annotated[list[Name], Field(min_length=1, max_length=1000)]
    engine: Literal["auto", "h5netcdf", "cfgrib", "zarr"] = "auto"  # auto: by the ending of the name
    sha256: Checksum | None = None  # of the one file that a URL or path names
    download_folder: Folder | None = None  # where a file behind a URL is kept; by default the user's cache folder
    select: dict[Name, float | Text] = {}  # one level, member, …: a value along a dimension, or of a GRIB key
    dimensions: dict[Literal["time", "y", "x"], Name] = {}  # the file's own names, where attributes don't tell
    units: Text | dict[Name, Text] = {}  # of all variables, or by variable, in place of the file's own
    z_r: ZR | None = None  # a and b of Z = a R^b, by which reflectivity in dBZ becomes rain; without it stays dBZ
    accumulated_minutes: dict[Name, Minutes] = {}  # of sums over time whose period the files do not tell
    decoding: Decoding = Decoding()
    storage_options: dict[str, Any] = {}  # handed to fsspec for a URL, for instance {anon: true}

    @model_validator(mode="after")
    def _variables_differ(self) -> GriddedOptions:
        if len(set(self.variables)) < len(self.variables):
            raise ValueError(f"variables has a name twice: {self.variables}")
        for name in self.variables:
            if name in RESERVED or name.endswith("_refused"):
                raise ValueError(f"variables has {name!r}, which is another thing in a store: rename it in the files")
        return self

    @model_validator(mode="after")
    def _units_name_variables(self) -> GriddedOptions:
        unknown = [] if isinstance(self.units, str) else [name for name in self.units if name not in self.variables]
        if unknown:
            raise ValueError(f"units names {unknown[0]!r}, expected one of {', '.join(self.variables)}")
        for name in self.accumulated_minutes:
            if name not in self.variables:
                raise ValueError(f"accumulated_minutes names {name!r}, expected one of {', '.join(self.variables)}")
            if self.units_of(name):
                raise ValueError(
                    f"accumulated_minutes and units both name {name!r}: a sum becomes a rate, leave one out"
                )
        return self

    def units_of(self, name: str) -> str | None:
        """Return the units that the options give to a variable, None where the file's own count."""
        return self.units if isinstance(self.units, str) else self.units.get(name)

    @model_validator(mode="after")
    def _keep_secrets(self) -> GriddedOptions:
        keep_secret(self.storage_options)
        return self


class MovingMnistOptions(SharedOptions):
    """The Moving MNIST generator; a sequence a day, hourly frames."""

    kind: Literal["moving_mnist"] = "moving_mnist"
    train_images: Text  # path or URL of an IDX file of digits, plain or gzip
    test_images: Text
    train_sha256: Checksum | None = None
    test_sha256: Checksum | None = None
    download_folder: Folder | None = None  # where files behind URLs are kept; by default the user's cache folder
    seed: Seed = 0
    start: Moment = datetime(2000, 1, 1)  # first frame of the first sequence
    sequences_train: Count = 1000  # sequences 0 … sequences_train - 1 show digits of train_images
    sequences_test: Count = 200  # the sequences after them show digits of test_images
    frames: int = Field(default=20, ge=2, le=24)
    digits: int = Field(default=2, ge=1, le=100)


SourceOptions = Annotated[
    StormsOptions | RadarOptions | GriddedOptions | MovingMnistOptions, Field(discriminator="kind")
]


class IngestOptions(Section):
    """Rules by which frames of any source become one regular store."""

    duplicates: Literal["refuse", "first", "last", "merge"] = "refuse"  # merge: cells missing in one come from the next
    out_of_order: Literal["refuse", "sort"] = "refuse"
    shard_frames: Count = 96  # frames in one file of the store, and in memory for each worker
