"""Verification of what was issued for places: sums of one forecast, and scores of many.

The truth is the station of a place's name, where a file of stations has it, else the observed field over the place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from fieldcast.pipeline.datasets.schema import LEAD_TIME, TIME
from fieldcast.pipeline.live.places.forecaster import PlaceForecaster
from fieldcast.pipeline.live.places.issue import CELLS, PLACE_NAME, QUANTILE
from fieldcast.pipeline.live.places.ranges import inside, quantified
from fieldcast.pipeline.live.places.stations import names_of, observed_at
from fieldcast.pipeline.verification.probabilistic import crps_of_sorted

OF_PLACES = "places"  # key of the sums inside those of a field
STATION, FIELD = "station", "field"
Sums = dict[str, dict[str, Any]]  # place -> {"truth", "lead_minutes", quantity: {sum: by lead}}


def place_sums(
    issued: xr.Dataset, observed: np.ndarray, forecaster: PlaceForecaster, stations: pd.DataFrame | None
) -> dict[str, Sums]:
    """Return by variable the sums of an issued forecast for places that are still the same.

    `observed` (lead, c, y, x) are the fields at the valid times. Leads without an observation or a range count nothing.
    """
    names = [str(name) for name in issued[PLACE_NAME].values]
    sums: dict[str, Sums] = {each.variable: {} for each in forecaster.quantities}
    for place in forecaster.places:
        if place.name not in names or issued[CELLS].values[names.index(place.name)] != place.key:
            continue
        is_station = stations is not None and place.name in names_of(stations)
        truth = forecaster.series(observed, place)
        if stations is not None and is_station:
            variables = [channel.name for channel in forecaster.config.channels[: forecaster.config.targets]]
            values = observed_at(stations, place.name, issued[TIME].values, variables)
            truth = quantified(values[..., None], forecaster.quantities, forecaster.config.step_minutes)[..., 0]
        for k, quantity in enumerate(forecaster.quantities):
            of_place = sums[quantity.variable].setdefault(
                place.name,
                {"truth": STATION if is_station else FIELD, "lead_minutes": issued[LEAD_TIME].values.tolist()},
            )
            ranks = issued[f"{quantity.name}_{QUANTILE}"].values[:, names.index(place.name)].astype(np.float64)
            of_place[quantity.name] = _sums(ranks, truth[:, k])
    return sums


def _sums(ranks: np.ndarray, truth: np.ndarray) -> dict[str, list[float]]:
    """Return count, CRPS and whether the observed is inside the range of 80 % by lead, of quantiles (COUNT, lead)."""
    valid = np.isfinite(truth) & np.isfinite(ranks).all(axis=0)
    crps, held = (np.where(valid, side(ranks, truth), 0.0) for side in (crps_of_sorted, inside))
    return {"n": valid.astype(float).tolist(), "crps": crps.tolist(), "inside": held.tolist()}


@dataclass(frozen=True)
class PlaceScores:
    """Scores of what was issued for one place, over all leads of some cycles."""

    place: str
    quantity: str
    truth: str
    cases: int
    crps: float
    inside: float  # share of observations in the range of 80 %


def place_scores(fields: Sequence[Mapping[str, Any]]) -> list[PlaceScores]:
    """Return the scores of the places of some cycles, from each one's sums of a field; ordered as in the last one."""
    last: Mapping[str, Any] = next((each[OF_PLACES] for each in reversed(fields) if each.get(OF_PLACES)), {})
    scores = []
    for place, newest in last.items():
        parts = [each[OF_PLACES][place] for each in fields if place in each.get(OF_PLACES, {})]
        for quantity in (name for name in newest if name not in ("truth", "lead_minutes")):
            alike = [part[quantity] for part in parts if quantity in part and part["truth"] == newest["truth"]]
            n, crps, held = (sum(sum(part[name]) for part in alike) for name in ("n", "crps", "inside"))
            if n:
                scores.append(PlaceScores(place, quantity, newest["truth"], int(n), crps / n, held / n))
    return scores
