"""Sections on scheduled forecasts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from fieldcast.pipeline.config.section import Amount, Count, Folder, Minutes, Name, Section, Share, Text
from fieldcast.pipeline.config.sources import SourceOptions
from fieldcast.pipeline.errors import keep_secret_address

ADDRESS, VARIABLE = re.compile(r"https?://[^\s\x00-\x1f]+"), re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")  # of a webhook
Hours = Annotated[float, Field(ge=0, le=24 * 366)]
KeptHours = Annotated[float, Field(gt=0, le=24 * 366)]
WaitMinutes = Annotated[float, Field(ge=0, le=1e6)]
MissingFrames = Annotated[int, Field(ge=0, le=10_000)]
Days = Annotated[float, Field(gt=0, le=366 * 100)]


def _in_order(limits: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    low, high = limits
    if low is None and high is None:
        raise ValueError("expected a lower or an upper limit, found none")
    if low is not None and high is not None and low >= high:
        raise ValueError(f"expected a lower limit below the upper one, found {low:g} and {high:g}")
    return limits


Kinds = TypeVar("Kinds", bound=Sequence[str])
Value = Annotated[float, Field(ge=-1e30, le=1e30)]


def _different(kinds: Kinds) -> Kinds:
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"one is there twice: {list(kinds)}")
    return kinds


ValueLimits = Annotated[tuple[Value | None, Value | None], AfterValidator(_in_order)]


class FeedLook(Section):
    """Limits of one look at the feed; what they leave out is taken at later looks."""

    max_megabytes: Annotated[float, Field(gt=0, le=1e6)] = 256.0  # downloaded; a larger file is refused
    max_seconds: Annotated[float, Field(ge=1, le=86_400)] = 90.0  # a third at most for all requests, or one file


class LateData(Section):
    """Steps of a cycle whose history lacks frames: wait, then fill, fall back or skip."""

    deadline_minutes: WaitMinutes = 10.0  # after the init time; until then a cycle waits for its whole history
    max_missing_frames: MissingFrames = 1  # that the model itself may fill; the newest frame is never filled
    fallback: Literal["advection", "persistence", "none"] = "persistence"  # with more missing; none: skip the cycle


class Schedule(Section):
    """Wake-up times of `fieldcast serve`; the ledger decides which cycles are due, not the moment of waking."""

    cron: Text = "* * * * *"  # minute hour day month weekday
    time_zone: Text = "UTC"
    jitter_seconds: Annotated[int, Field(ge=0, le=86_400)] = 0
    misfire: Literal["run", "skip"] = "run"  # a waking that was missed, asleep or at work: once, later, or never


class Products(Section):
    """What is published of a forecast with members, beside their mean."""

    members: bool = False  # all of them
    exceed: dict[Name, Annotated[tuple[Value, ...], Field(min_length=1)]] = {}  # probability of these values or more
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()

    @property
    def asked(self) -> bool:
        """Return whether there is any."""
        return self.members or bool(self.exceed) or bool(self.quantiles)


class Drift(Section):
    """Limits beyond which the forecasts of the last days raise an alarm."""

    days: Days = 2.0
    min_cycles: Count = 12  # fewer verified cycles raise no alarm
    max_rmse_ratio: Annotated[float, Field(gt=0, le=1000)] = 1.0  # RMSE over all leads relative to that of persistence
    max_mean_error: Amount | None = None  # absolute, in the first variable's units; null: not looked at
    max_outside_share: Share = 0.01  # of input cells outside the range of the training data


def _webhook(value: Any) -> Any:
    if isinstance(value, str) and not VARIABLE.fullmatch(value):
        keep_secret_address(value)
        if not ADDRESS.fullmatch(value):
            raise ValueError(
                "expected an address such as https://example.org/hook, or env:NAME for a variable with one"
            )
    return value


Webhook = Annotated[str, Field(max_length=2000), BeforeValidator(_webhook)]
States = tuple[Literal["failed", "late", "damaged", "degraded", "drift"], ...]


class Notify(Section):
    """Those who are told once when the schedule gets into a state, and once when it is out of it."""

    webhook: Webhook | None = None  # an address that takes JSON by POST, or env:NAME, the variable that holds one
    command: tuple[Text, ...] = ()  # a program with its arguments, which gets JSON on its standard input
    states: Annotated[States, AfterValidator(_different)] = ("failed", "late", "damaged", "degraded", "drift")


class Retention(Section):
    """Retention of cycles and frames; the newest published cycle is always kept."""

    days: Days | None = 30.0  # of published cycles; null: any age
    cycles: Count | None = None  # at most so many; null: any number
    observations_hours: KeptHours = 72.0  # of live frames; at least what histories and verification need


class Live(Section):
    """Scheduled forecasts; see docs/scheduled.md."""

    model: Text = "champion"  # an alias in the registry, or a checkpoint folder
    source: SourceOptions | None = None  # where new frames appear; default: the training source
    feed: FeedLook = FeedLook()
    every_minutes: Minutes | None = None  # between init times; default: the model's step
    late_data: LateData = LateData()
    schedule: Schedule = Schedule()
    backfill_hours: Hours = 6.0  # how far a restart catches up; older due cycles are skipped
    verify_after_hours: Hours = 6.0  # with gaps in its observations a cycle is scored without them
    max_attempts: Annotated[int, Field(gt=0, le=1000)] = 3
    lock_wait_seconds: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    reserve_megabytes: Annotated[float, Field(ge=0, le=1e9)] = 64.0  # of the disk that a cycle leaves free
    limits: dict[Name, ValueLimits] = {}  # [lowest, highest] value by variable; a frame beyond is refused
    products: Products = Products()
    places: Folder | None = None  # a GeoJSON file of named points and areas, of which ranges are forecast
    stations: Folder | None = None  # CSV of name, time and values there: the truth for places of these names
    copies: Annotated[list[Literal["netcdf", "geotiff", "geojson"]], AfterValidator(_different)] = []
    drift: Drift = Drift()
    notify: Notify = Notify()
    retention: Retention = Retention()
