"""Sections on the data: periods of init times, transforms of variables, samples."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from fieldcast.pipeline.config.section import Section, Share


def _no_zone(value: datetime) -> datetime:
    if value.tzinfo is not None:
        raise ValueError("times are UTC and written without a zone, for instance 2010-08-26T06:00")
    return value


Utc = Annotated[datetime, AfterValidator(_no_zone)]


class Split(Section):
    """A period of init times, both ends included; every `every_steps`-th step of the time axis is one."""

    start: Utc
    end: Utc
    every_steps: PositiveInt = 1

    @model_validator(mode="after")
    def _ascending(self) -> Split:
        if self.end < self.start:
            raise ValueError(f"the period is empty: end {self.end} is before start {self.start}")
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
    """Transform of a variable for networks: log(1 + x / floor), or 10 log10(max(x, floor) / floor) for `db`."""

    kind: Literal["identity", "log", "db"] = "identity"
    floor: PositiveFloat = 1.0  # in the variable's own units

    @model_validator(mode="after")
    def _floor_is_read(self) -> Transform:
        if self.kind == "identity" and "floor" in self.model_fields_set:
            raise ValueError("floor has no effect with kind identity; remove it or choose log or db")
        return self


class Prepare(Section):
    """Preparation of the observations: splits, transforms, climatology and quality."""

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
    """Samples of models: histories, horizons and further inputs."""

    history: PositiveInt
    horizon: PositiveInt
    crop_cells: PositiveInt | None = None  # training crops of this size; default: the whole field
    min_valid_share: Share = 0.5  # of a training crop's last frame; the fullest of ten draws if none has it
    cache: Literal["ram", "store"] = "store"  # ram: decode the observations once and keep them
    calendar: bool = False  # hour of the day and day of the year as four more inputs
    coordinates: bool = False  # row and column as two more inputs
