"""The only reader of `params.yaml`: every section, its checks, and the one line a user sees when a value is wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

import models
from pipeline.schema import InputError
from pipeline.source_options import IngestOptions, SourceOptions
from pipeline.train_options import Share, Train

PARAMS = Path("params.yaml")


def _no_zone(value: datetime) -> datetime:
    if value.tzinfo is not None:
        raise ValueError("times are UTC and written without a zone, for instance 2010-08-26T06:00")
    return value


Utc = Annotated[datetime, AfterValidator(_no_zone)]


class Section(BaseModel):
    """A section of `params.yaml`: unknown keys are refused, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Split(Section):
    """A period of init times, both ends included; every `every_steps`-th step of the time axis is one."""

    start: Utc
    end: Utc
    every_steps: PositiveInt = 1

    @model_validator(mode="after")
    def _ascending(self) -> Split:
        if self.end < self.start:
            raise ValueError(f"the period is empty: end {self.end} lies before start {self.start}")
        return self


class Splits(Section):
    """Three periods of init times in ascending order; `Params` checks the gaps between them."""

    train: Split
    validation: Split
    test: Split

    def in_order(self) -> list[tuple[str, Split]]:
        """Return (name, split) from the earliest to the latest use."""
        return [("train", self.train), ("validation", self.validation), ("test", self.test)]


class Transform(Section):
    """How a variable is made fit for a network: log(1 + x / floor), or 10 log10(max(x, floor) / floor) for `db`."""

    kind: Literal["identity", "log", "db"] = "identity"
    floor: PositiveFloat = 1.0  # in the variable's own units

    @model_validator(mode="after")
    def _floor_is_read(self) -> Transform:
        if self.kind == "identity" and "floor" in self.model_fields_set:
            raise ValueError("floor has no effect with kind identity; remove it or choose log or db")
        return self


class Prepare(Section):
    """What `prepare` makes of the observations."""

    splits: Splits
    targets: list[str] | None = None  # forecast variables; default: all that the source has
    transform: dict[str, Transform] = {}  # by variable; default identity
    anomalies: bool = False  # forecast departures from the climatology instead of from one mean
    climatology: Literal["auto", "mean", "hour_of_day"] = "auto"
    climatology_min_days: PositiveInt = 15  # auto: shorter training periods get one mean
    max_missing_history: NonNegativeInt = 0  # frames that may be missing in a history
    max_missing_horizon: NonNegativeInt = 0  # frames that may be missing in a horizon
    min_valid_share: Share = 0.05  # a frame with fewer valid cells counts as missing
    wet_above: PositiveFloat = 0.1  # a cell counts as wet in the quality report, in the first variable's units


class Sample(Section):
    """What a model sees and forecasts."""

    history: PositiveInt
    horizon: PositiveInt
    crop_cells: PositiveInt | None = None  # training crops of this size; default: the whole field
    min_valid_share: Share = 0.5  # of a training crop's last frame; the fullest of ten draws if none has it
    cache: Literal["ram", "store"] = "store"  # ram: decode the observations once and keep them
    calendar: bool = False  # hour of the day and day of the year as four more inputs
    coordinates: bool = False  # row and column as two more inputs


class Online(Section):
    """How networks learn on while the test period is forecast, as in Shi et al. (2017, arXiv:1706.03458), 3.4."""

    learning_rate: PositiveFloat = 1e-4  # of AdaGrad
    threshold: NonNegativeFloat = 0.0  # samples with a loss up to here are passed over; in normalised units


class Forecast(Section):
    """How the test period is forecast."""

    batch_size: PositiveInt = 16  # init times read, forecast and written together; no value depends on it
    tile_cells: PositiveInt | None = None  # default: the training crop; whole fields where that is null too
    overlap_cells: NonNegativeInt = 16
    online: Online | None = None  # null: networks stay as they were trained, as they always do on a schedule

    def check_online(self, grid_shape: tuple[int, int], crop_cells: int | None) -> None:
        """Raise `InputError` where networks would learn on, from whole fields, and forecast these by tiles."""
        tile = self.tile_cells or crop_cells
        if self.online is not None and tile is not None and tile < max(grid_shape):
            raise InputError(
                f"params.yaml: forecast.online learns from whole fields, here of {grid_shape[0]} x {grid_shape[1]}"
                f" cells, which may not fit into memory where forecasts are made by tiles of {tile}; set"
                f" forecast.online to null, or forecast.tile_cells to {max(grid_shape)} if whole fields do fit"
            )


class Region(Section):
    """A part of the grid, from and to in its own coordinates (metres, degrees), both ends included."""

    y: tuple[float, float]
    x: tuple[float, float]


class Verify(Section):
    """What is counted; thresholds are in the variable's own units, by variable."""

    thresholds: dict[str, list[float]] = {}
    neighbourhoods_km: list[PositiveFloat] = []
    regions: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Region] = {}  # scored by themselves as well

    @field_validator("thresholds")
    @classmethod
    def _thresholds_rise(cls, value: dict[str, list[float]]) -> dict[str, list[float]]:
        for name, thresholds in value.items():
            if not thresholds or any(b <= a for a, b in pairwise(thresholds)):
                raise ValueError(f"thresholds of {name} are {thresholds}, expected a rising list such as [0.5, 1, 2]")
        return value

    @field_validator("neighbourhoods_km")
    @classmethod
    def _neighbourhoods_rise(cls, value: list[float]) -> list[float]:
        if any(b <= a for a, b in pairwise(value)):
            raise ValueError(f"neighbourhoods are {value}, expected a rising list such as [2, 10, 20]")
        return value


class Compare(Section):
    """How sure a difference between two models has to be."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95  # of intervals, and of the word "better"
    resamples: Annotated[int, Field(ge=100)] = 1000  # of the init times, by blocks
    seed: NonNegativeInt = 1


class Guards(Section):
    """What no champion may fall short of at the named leads; null: not looked at."""

    max_mean_error: PositiveFloat | None = None  # absolute, in the first variable's units
    min_spectrum_ratio: Share | None = None  # of the fine scales: less is a blurred forecast
    min_coverage: Share | None = None  # of the 90 % interval, where a model gives one
    max_coverage: Share | None = None


class Promotion(Section):
    """When a model becomes the champion: better in a paired test, and within the guards."""

    score: Literal["rmse", "mae", "crps"] = "rmse"
    leads_minutes: list[PositiveInt] | None = None  # pooled; default: all leads
    guards: Guards = Guards()


class Track(Section):
    """Where MLflow keeps the runs; `MLFLOW_TRACKING_URI` chooses the server."""

    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Dask(Section):
    """Where blocks of work run: threads of this process, or the cluster behind `scheduler`."""

    scheduler: str | None = None  # address of a dask.distributed scheduler, tcp://host:8786


class LateData(Section):
    """What a cycle does when frames of its history are missing: wait, then fill, fall back or skip."""

    deadline_minutes: NonNegativeFloat = 10.0  # after the init time; until then a cycle waits for its whole history
    max_missing_frames: NonNegativeInt = 1  # that the model itself may fill; the newest frame is never filled
    fallback: Literal["advection", "persistence", "none"] = "persistence"  # with more missing; none: skip the cycle


class Schedule(Section):
    """When `fieldcast serve` looks for work; what is due is decided by the ledger, not by the moment of waking."""

    cron: str = "* * * * *"  # minute hour day month weekday
    time_zone: str = "UTC"
    jitter_seconds: NonNegativeInt = 0
    misfire: Literal["run", "skip"] = "run"  # a waking that was missed, asleep or at work: once, later, or never


class Drift(Section):
    """When the forecasts of the last days count as worse than they should be."""

    days: PositiveFloat = 2.0
    min_cycles: PositiveInt = 12  # fewer verified cycles raise no alarm
    max_rmse_ratio: PositiveFloat = 1.0  # RMSE over all leads relative to that of persistence
    max_mean_error: PositiveFloat | None = None  # absolute, in the first variable's units; null: not looked at
    max_outside_share: Share = 0.01  # of input cells outside the range of the training data


class Retention(Section):
    """What is kept; the newest published cycle always is."""

    days: PositiveFloat | None = 30.0  # of published cycles; null: any age
    cycles: PositiveInt | None = None  # at most so many; null: any number
    observations_hours: PositiveFloat = 72.0  # of live frames; at least what histories and verification need


class Live(Section):
    """Scheduled forecasts; see docs/scheduled.md."""

    model: str = "champion"  # an alias in the registry, or a checkpoint folder
    source: SourceOptions | None = None  # where new frames appear; default: the training source
    every_minutes: PositiveInt | None = None  # between init times; default: the model's step
    late_data: LateData = LateData()
    schedule: Schedule = Schedule()
    backfill_hours: NonNegativeFloat = 6.0  # how far a restart catches up; older due cycles are skipped
    verify_after_hours: NonNegativeFloat = 6.0  # a cycle whose truth has gaps is scored without them so long after
    max_attempts: PositiveInt = 3
    lock_wait_seconds: NonNegativeFloat = 30.0
    reserve_megabytes: NonNegativeFloat = 64.0  # of the disk that a cycle leaves free
    copies: list[Literal["netcdf", "geotiff"]] = []
    drift: Drift = Drift()
    retention: Retention = Retention()


class Params(Section):
    """The whole of `params.yaml`."""

    source: SourceOptions
    ingest: IngestOptions = IngestOptions()
    prepare: Prepare
    sample: Sample
    train: Train
    forecast: Forecast = Forecast()
    verify: Verify = Verify()
    compare: Compare = Compare()
    promotion: Promotion = Promotion()
    track: Track
    dask: Dask = Dask()
    live: Live = Live()
    kinds: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str]  # which code in models/ each name is
    models: dict[str, SerializeAsAny[BaseModel]]

    @field_validator("kinds")
    @classmethod
    def _known_kinds(cls, value: dict[str, str]) -> dict[str, str]:
        for name, kind in value.items():
            if kind not in models.OPTIONS:
                raise ValueError(f"{name} is of the unknown kind {kind!r}, expected one of {', '.join(models.OPTIONS)}")
        return value

    @field_validator("models", mode="before")
    @classmethod
    def _options_of_kinds(cls, value: Any, info: ValidationInfo) -> dict[str, BaseModel]:
        if not isinstance(value, dict):
            raise ValueError("expected a mapping of model names to their options")
        if "kinds" not in info.data:  # refused for a reason of its own
            return {}
        kinds: dict[str, str] = info.data["kinds"]
        if odd := sorted(set(kinds) ^ set(value)):
            there, missing = ("models", "kinds") if odd[0] in value else ("kinds", "models")
            raise ValueError(f"{odd[0]!r} stands under {there}, not under {missing}; expected the same names in both")
        return {name: _model_options(name, kinds[name], options or {}) for name, options in value.items()}

    @model_validator(mode="after")
    def _somebody_can_be_champion(self) -> Params:
        if self.forecast.online is not None and not set(self.kinds.values()) & set(models.REFERENCES):
            raise ValueError(
                "forecast.online leaves promotion without a candidate, since all models in kinds learn on; add a"
                " reference such as persistence, or set forecast.online to null"
            )
        return self


def _model_options(name: str, kind: str, options: dict[str, Any]) -> BaseModel:
    try:
        return models.OPTIONS[kind].model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join([name, *(str(part) for part in first["loc"])])
        raise ValueError(f"{path} is {_shown(first['input'])}: {_reason(first)}") from None


def read(path: Path = PARAMS) -> Params:
    """Return the checked content of `path`; raise `InputError` with one line that names file, key, value and fix."""
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; copy one from examples/ or run in the project's folder") from None
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected sections such as source: and train:, found {type(content).__name__}")
    try:
        return Params.model_validate(content)
    except ValidationError as error:
        raise InputError(_one_line(path, error)) from None


def load() -> Params:
    """Return the parameters of the project in the working directory."""
    return read(PARAMS)


def check_gaps(splits: Splits, history: int, horizon: int, step: timedelta) -> None:
    """Raise `InputError` unless the splits ascend with at least `history + horizon` steps between them.

    With that gap no frame belongs to two splits, as history or as target.
    """
    gap = (history + horizon) * step
    ordered = sorted(splits.in_order(), key=lambda named: named[1].start)
    for (name, split), (later_name, later) in pairwise(ordered):
        if later.start - split.end < gap:
            earliest = split.end + gap
            raise InputError(
                f"params.yaml: prepare.splits.{later_name}.start is {later.start}, {later.start - split.end} after the"
                f" end of {name}; expected at least history + horizon = {history + horizon} steps, so {earliest} or"
                " later"
            )


def run_stage(stage: Callable[[], None]) -> None:
    """Run a stage; wrong input ends in one line on standard error and exit code 2."""
    try:
        stage()
    except InputError as error:
        sys.stderr.write(f"fieldcast: {error}\n")
        sys.exit(2)


def _one_line(path: Path, error: ValidationError) -> str:
    first = error.errors()[0]
    parts = [str(part) for i, part in enumerate(first["loc"]) if i == 0 or first["loc"][i - 1] != "source"]
    where = ".".join(parts)  # behind 'source' stands the kind, which is no key of the file
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    value = "" if isinstance(first["input"], dict) else f" is {_shown(first['input'])}"
    return f"{path}: {where or 'the file'}{value}: {_reason(first)}{more}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _reason(problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        return "unknown key; remove it or correct its spelling"
    return str(problem["msg"]).removeprefix("Value error, ")
