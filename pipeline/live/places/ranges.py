"""Ranges of a place's values: members of an area's mean, calibrated so that the observed falls between them as often
as their levels say.

The mean over an area is taken of each member, never of quantiles of cells. What comes out is `COUNT` equally likely
values, quantiles at levels (i - 1/2) / COUNT, of which the second and the last but one enclose 80 %. Members of cells
say little of an area: quantiles of cells rise and fall together and are too wide, members of an ensemble too alike.
So they are drawn towards their mean by the factor that suits the validation period best, and their ranks are moved by
the offsets that it asks for (`pipeline.forecasting.calibration`), found for areas of the same shape wherever they lie
on the grid, since one place has few cases. Of a model without members the same offsets make a range around its value.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS
from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.errors import DamagedError
from fieldcast.pipeline.forecasting.calibration import CENTRES, OFFSETS, Calibration
from fieldcast.pipeline.live.places.areas import Place
from fieldcast.pipeline.verification.probabilistic import quantile

log = logging.getLogger(__name__)
COUNT = 15
LEVELS = (np.arange(COUNT) + 0.5) / COUNT
FILE = "places.npz"  # in the live folder
FIX = "fieldcast places"
DIGEST, SPREAD = "model_digest", "spread"
AMOUNT = "amount"


@dataclass(frozen=True)
class Quantity:
    """What is forecast of a place: a variable's mean over it, or the amount of rain there since the init time."""

    variable: str
    position: int  # of the variable among the forecast ones
    units: str
    lowest: float
    highest: float
    is_amount: bool = False

    @property
    def name(self) -> str:
        """Return the name in files."""
        return f"{self.variable}_{AMOUNT}" if self.is_amount else self.variable


def quantities_of(targets: Sequence[Channel]) -> list[Quantity]:
    """Return the quantities of forecast variables: each of them, and after a rain rate the amount in mm."""
    quantities = []
    for position, channel in enumerate(targets):
        low = -np.inf if channel.valid_min is None else channel.valid_min
        high = np.inf if channel.valid_max is None else channel.valid_max
        quantities.append(Quantity(channel.name, position, channel.units, low, high))
        if channel.units == RAIN_RATE_UNITS:
            quantities.append(Quantity(channel.name, position, "mm", low, np.inf, is_amount=True))
    return quantities


def quantified(series: np.ndarray, quantities: Sequence[Quantity], step_minutes: float) -> np.ndarray:
    """Return the quantities (..., lead, quantity, n) of a series of variables' means (..., lead, c, n)."""
    values = [
        series[..., each.position, :].cumsum(axis=-2) * step_minutes / 60
        if each.is_amount
        else series[..., each.position, :]
        for each in quantities
    ]
    return np.stack(values, axis=-2)


def ranked(members: np.ndarray) -> np.ndarray:
    """Return the quantiles (COUNT, ...) at `LEVELS` of equally likely members (m, ...), of one member that alone."""
    ordered = np.sort(members, axis=0)
    return np.stack([quantile(ordered, level) for level in LEVELS])


@dataclass(frozen=True)
class RangeCalibration:
    """Calibration of the ranges of places of one shape: spread about the mean, kept of the members', then offsets."""

    spread: float
    offsets: Calibration

    def __call__(self, ranks: np.ndarray, quantities: Sequence[Quantity]) -> np.ndarray:
        """Return quantiles (COUNT, lead, quantity, ...) moved, in the variable's valid range; amounts never fall."""
        shape = ranks.shape
        drawn = narrowed(ranks, self.spread).reshape(1, *shape[:3], 1, -1).astype(np.float32)
        moved: np.ndarray = self.offsets(drawn)[0].reshape(shape)
        for k, each in enumerate(quantities):
            moved[:, :, k] = np.clip(moved[:, :, k], each.lowest, each.highest)
            if each.is_amount:
                moved[:, :, k] = np.maximum.accumulate(moved[:, :, k], axis=1)
        return moved


def narrowed(ranks: np.ndarray, spread: float) -> np.ndarray:
    """Return quantiles (COUNT, ...) with this share of their distances from their mean."""
    mean = ranks.mean(axis=0)
    drawn: np.ndarray = mean + spread * (ranks - mean)
    return drawn


@dataclass(frozen=True)
class Ranges:
    """Calibrations of a model's ranges by the shape of places."""

    model_digest: str
    of_shape: dict[str, RangeCalibration] = field(default_factory=dict)

    def range_of(
        self, place: Place, members: np.ndarray, quantities: Sequence[Quantity], model_digest: str
    ) -> tuple[np.ndarray, bool]:
        """Return the range (COUNT, lead, quantity) of members (m, lead, quantity), and whether it is calibrated.

        That of one member without a calibration is NaN.
        """
        calibration = self.of_shape.get(place.shape_key) if self.model_digest == model_digest else None
        if calibration is None:
            return (ranked(members) if len(members) > 1 else np.full((COUNT, *members.shape[1:]), np.nan)), False
        return calibration(ranked(members), quantities), True


def packed(ranges: Ranges) -> bytes:
    """Return ranges as the content of a file that ends in its SHA-256."""
    arrays = {DIGEST: np.array(ranges.model_digest)}
    for key, calibration in ranges.of_shape.items():
        arrays |= {f"{key}.{name}": array for name, array in calibration.offsets.arrays().items()}
        arrays[f"{key}.{SPREAD}"] = np.array(calibration.spread)
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **arrays)
    return manifest.with_tail(content.getvalue())


def read_ranges(folder: Path) -> Ranges:
    """Return what `fieldcast places` left in a live folder; of none, or of a damaged file, ranges for no place."""
    path = folder / FILE
    if not path.is_file():
        return Ranges("")
    try:
        content = manifest.without_tail(path, FIX)
    except DamagedError as error:
        log.warning("%s", error)
        return Ranges("")
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = dict(stored)
    keys = sorted({name.split(".")[0] for name in arrays if name != DIGEST})
    if missing := [key for key in keys if f"{key}.{SPREAD}" not in arrays]:
        log.warning("%s: has no spread of %s, another version wrote it: %s", path, missing[0], FIX)
        return Ranges("")
    of_shape = {
        key: RangeCalibration(
            float(arrays[f"{key}.{SPREAD}"]), Calibration(arrays[f"{key}.{OFFSETS}"], arrays[f"{key}.{CENTRES}"])
        )
        for key in keys
    }
    return Ranges(str(arrays[DIGEST]), of_shape)


def inside(ranks: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return 1.0 where an observation (...) is in the range of 80 % of quantiles (COUNT, ...), ends included, else 0.0.

    Where no rain is the range's lower end, nothing falls below it: the range then holds up to 90 %.
    """
    return np.asarray((observed >= ranks[1]) & (observed <= ranks[-2]), np.float64)
