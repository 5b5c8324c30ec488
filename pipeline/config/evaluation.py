"""Sections on forecasts of the test period: how they are made, verified, compared and promoted."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fieldcast.pipeline.config.section import Amounts, Cells, Count, Minutes, Name, Section, Seed, Share
from fieldcast.pipeline.errors import InputError

Address = Annotated[str, Field(pattern=r"^[a-z]+://\S+$")]
Threshold = Annotated[float, Field(ge=-1e12, le=1e12)]
Distance = Annotated[float, Field(gt=0, le=40_000)]  # km; the circumference of the earth


class Online(Section):
    """Online learning of networks over the test period, as in Shi et al. (2017, arXiv:1706.03458), 3.4."""

    learning_rate: Annotated[float, Field(ge=1e-12, le=10)] = 1e-4  # of AdaGrad
    threshold: Annotated[float, Field(ge=0, le=1e12)] = 0.0  # normalised; samples with a smaller loss are left out


class Forecast(Section):
    """Forecasts of the test period."""

    batch_size: Count = 16  # init times read, forecast and written together; no value depends on it
    tile_cells: Cells | None = None  # default: the training crop; whole fields where that is null too
    overlap_cells: Annotated[int, Field(ge=0, le=100_000)] = 16
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

    @model_validator(mode="after")
    def _holds_an_area(self) -> Region:
        for axis, (first, last) in (("y", self.y), ("x", self.x)):
            if first == last:
                raise ValueError(f"{axis} is from {first:g} to {last:g}, expected two different ends")
        return self


class StormCell(Section):
    """What counts as a storm cell of a variable, and how far from it a forecast one may be to be the same."""

    at_least: Threshold  # the variable's units
    area_km2: Annotated[float, Field(ge=0, le=1e8)] = 16.0  # smaller ones are left out
    within_km: Distance = 20.0  # between centres


class Verify(Section):
    """Scores of the test period; thresholds are in the variable's units, by variable."""

    thresholds: dict[Name, Annotated[list[Threshold], Field(max_length=100)]] = {}
    neighbourhoods_km: Annotated[list[Distance], Field(max_length=100)] = []
    storm_cells: dict[Name, StormCell] = {}  # scores of connected areas, by variable
    regions: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")], Region] = {}  # scored by themselves as well

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
    """Confidence in a difference between two models."""

    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95  # of intervals, and of the word "better"
    resamples: Annotated[int, Field(ge=100, le=100_000)] = 1000  # of the init times, by blocks
    seed: Seed = 1


class Guards(Section):
    """Limits that every champion keeps at each of the named leads; null: not checked."""

    max_mean_error: Amounts | None = None  # absolute, in the variable's units; a plain number: of the first variable
    min_spectrum_ratio: Share | None = 0.01  # of the fine scales: less is a field without any, see decision 21
    min_csi_ratio: Share | None = 0.5  # to the best reference's, at the highest threshold with events; 1: not worse
    min_coverage: Share | None = None  # of the 90 % interval, where a model gives one
    max_coverage: Share | None = None

    @model_validator(mode="after")
    def _coverage_is_a_range(self) -> Guards:
        if (self.min_coverage or 0.0) > (1.0 if self.max_coverage is None else self.max_coverage):
            raise ValueError(f"min_coverage {self.min_coverage} is above max_coverage {self.max_coverage}")
        return self


class CostLoss(Section):
    """A user who can protect against an event: values that reach the threshold, in the deciding variable's units."""

    threshold: Threshold  # one of verify.thresholds
    ratio: Annotated[float, Field(gt=0, le=0.9)]  # cost of protection / loss avoided: the user acts at this probability


class Promotion(Section):
    """Rule by which a model becomes the champion: better in paired tests, and within the guards for all variables."""

    score: Literal["rmse", "mae", "crps", "value"] = "rmse"
    cost_loss: CostLoss | None = None  # of the score value
    variable: Name | None = None  # whose score decides; default: the first that is forecast
    leads_minutes: Annotated[list[Minutes], Field(min_length=1)] | None = None  # pooled, and each; default: all leads
    guards: Guards = Guards()

    @field_validator("leads_minutes")
    @classmethod
    def _leads_differ(cls, value: list[int] | None) -> list[int] | None:
        if value and len(set(value)) < len(value):
            raise ValueError(f"a lead is there twice: {value}")
        return value

    @model_validator(mode="after")
    def _value_has_a_user(self) -> Promotion:
        if self.score == "value" and self.cost_loss is None:
            raise ValueError(
                "score is value, expected cost_loss beside it, such as cost_loss: {threshold: 5, ratio: 0.2}"
            )
        if self.score != "value" and self.cost_loss is not None:
            raise ValueError(f"cost_loss is of the score value, and score is {self.score}: remove one of the two lines")
        return self


class Track(Section):
    """MLflow's experiment; `MLFLOW_TRACKING_URI` chooses the server."""

    experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$")]


class Dask(Section):
    """Workers of blocks: threads of this process, or the cluster behind `scheduler`."""

    scheduler: Address | None = None  # of a dask.distributed scheduler, tcp://host:8786
