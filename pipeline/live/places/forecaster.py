"""The places of a schedule: what is forecast and what is observed of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.live.places.areas import Place, read_places
from fieldcast.pipeline.live.places.ranges import Quantity, Ranges, quantified, quantities_of, read_ranges


@dataclass(frozen=True)
class PlaceForecast:
    """The forecast of one place, by lead and quantity."""

    place: Place
    mean: np.ndarray  # (lead, quantity), of the published field
    range: np.ndarray  # (COUNT, lead, quantity); NaN of a single forecast without a calibration
    history: np.ndarray  # (t, quantity), observed; of amounts since its first frame
    is_calibrated: bool


@dataclass(frozen=True)
class PlaceForecaster:
    """The places of a schedule, and the ranges of its model there."""

    places: Sequence[Place]
    ranges: Ranges
    config: CheckpointConfig

    @classmethod
    def read(cls, path: Path, folder: Path, config: CheckpointConfig) -> PlaceForecaster:
        """Return the places of a GeoJSON file with the ranges of a live folder; raise `InputError` as `read_places`."""
        return cls(read_places(path, config.signature), read_ranges(folder), config)

    @cached_property
    def quantities(self) -> list[Quantity]:
        """Return what is forecast of each place."""
        return quantities_of(self.config.channels[: self.config.targets])

    def series(self, fields: np.ndarray, place: Place) -> np.ndarray:
        """Return the quantities (..., lead, quantity) of fields (..., lead, c, y, x) over a place."""
        means = place.of(fields[..., : self.config.targets, :, :].astype(np.float64))
        return quantified(means[..., None], self.quantities, self.config.step_minutes)[..., 0]

    def forecast(self, members: np.ndarray, history: np.ndarray, model_digest: str) -> list[PlaceForecast]:
        """Return the forecasts of members (m, lead, c, y, x) that were made from a history (t, c, y, x).

        `model_digest` is that of the checkpoint that made them, empty of a fallback.
        """
        forecasts = []
        for place in self.places:
            of_members = self.series(members, place)
            of_place, is_calibrated = self.ranges.range_of(place, of_members, self.quantities, model_digest)
            observed = self.series(history, place)
            forecasts.append(PlaceForecast(place, of_members.mean(axis=0), of_place, observed, is_calibrated))
        return forecasts
