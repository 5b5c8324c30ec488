"""Sections on the data: periods of init times, transforms of variables, samples."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from fieldcast.pipeline.config.section import Amount, Amounts, Cells, Count, Frames, Name, Section, Share, Time


def _no_zone(value: datetime) -> datetime:
    if value.tzinfo is not None:
        raise ValueError("times are UTC and written without a zone, for instance 2010-08-26T06:00")
    return value


Utc = Annotated[Time, AfterValidator(_no_zone)]
Missing = Annotated[int, Field(ge=0, le=10_000)]  # frames of a sample


class Split(Section):
    """A period of init times, both ends included; every `every_steps`-th step of the time axis is one."""

    start: Utc
    end: Utc
    every_steps: Count = 1

    @model_validator(mode="after")
    def _ascending(self) -> Split:
        if self.end < self.start:
            raise ValueError(f"the period is empty: end {self.end} is before start {self.start}")
        return self


class Splits(Section):
    """Three periods of init times, that of the test the last; `check_gaps` checks the gaps between them."""

    train: Split
    validation: Split
    test: Split

    @model_validator(mode="after")
    def _test_is_last(self) -> Splits:
        latest = max(self.train.end, self.validation.end)
        if self.test.start <= latest:
            raise ValueError(
                f"test starts at {self.test.start}, expected after train and validation, which end {latest}"
            )
        return self

    def in_order(self) -> list[tuple[str, Split]]:
        """Return (name, split) from the earliest to the latest use."""
        return [("train", self.train), ("validation", self.validation), ("test", self.test)]


class Transform(Section):
    """Transform of a variable for networks: log(1 + x / floor), or 10 log10(max(x, floor) / floor) for `db`."""

    kind: Literal["identity", "log", "db"] = "identity"
    floor: Amount = 1.0  # in the variable's own units

    @model_validator(mode="after")
    def _floor_is_read(self) -> Transform:
        if self.kind == "identity" and "floor" in self.model_fields_set:
            raise ValueError("floor has no effect with kind identity; remove it or choose log or db")
        return self


class Prepare(Section):
    """Preparation of the observations: splits, transforms, climatology and quality."""

    splits: Splits
    targets: Annotated[list[Name], Field(min_length=1)] | None = None  # to forecast; default: all
    transform: dict[Name, Transform] = {}  # by variable; default identity
    anomalies: bool = False  # forecast departures from the climatology instead of from one mean
    climatology: Literal["auto", "mean", "hour_of_day"] = "auto"
    climatology_min_days: Count = 15  # auto: shorter training periods get one mean
    max_missing_history: Missing = 0  # frames that may be missing in a history
    max_missing_horizon: Missing = 0  # frames that may be missing in a horizon
    min_valid_share: Share = 0.05  # a frame with fewer valid cells counts as missing
    wet_above: Amounts = 0.1  # cells above it are counted in the quality report; a plain number: of the first variable

    @model_validator(mode="after")
    def _targets_differ(self) -> Prepare:
        if self.targets is not None and len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets has a name twice: {self.targets}")
        return self


class Sample(Section):
    """Samples of models: histories, horizons and further inputs."""

    history: Frames
    horizon: Frames
    crop_cells: Cells | None = None  # training crops of this size; default: the whole field
    min_valid_share: Share = 0.5  # of a training crop's last frame; the fullest of ten draws if none has it
    cache: Literal["ram", "store"] = "store"  # ram: decode the observations once and keep them
    calendar: bool = False  # hour of the day and day of the year as four more inputs
    coordinates: bool = False  # row and column as two more inputs
