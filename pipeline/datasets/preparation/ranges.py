"""Ranges of the values of variables, and what they say about transforms and models of amounts.

An amount, such as rain, is 0 or above, and 0 is nothing of it: decibels and logarithms are of amounts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from fieldcast.pipeline.config import Split, Transform
from fieldcast.pipeline.datasets.schema import TIME
from fieldcast.pipeline.errors import InputError

NO_AMOUNTS = ("K", "degC", "degree_Celsius", "Celsius", "°C", "dBZ", "dB")  # units in which 0 is not nothing
CONSTANT = 1e-6  # of the largest value, below which a range is rounding
NOISE = 0.01  # of a floor, by which rounding may make an amount negative
MOST_VALUES = 2**26  # that a look at observations reads


@dataclass(frozen=True)
class Range:
    """A variable's units, and its lowest and highest value in the training period where these are known."""

    name: str
    units: str
    low: float | None = None
    high: float | None = None
    whole: bool = True  # of all frames, not of some

    def with_values(self, values: np.ndarray) -> Range:
        """Return the range with these values in it too; NaN is none."""
        if np.isnan(values).all():
            return self
        low, high = float(np.nanmin(values)), float(np.nanmax(values))
        if self.low is None or self.high is None:
            return replace(self, low=low, high=high)
        return replace(self, low=min(low, self.low), high=max(high, self.high))

    def because(self, floor: float, dry: bool) -> str | None:
        """Return what speaks against an amount with values from `floor` on, in words; None where nothing does.

        `dry` asks for values below the floor too, as rain has them.
        """
        if self.units in NO_AMOUNTS:
            return f"{self.name} is in {self.units}{self._text(', with values of')}"
        if self.low is not None and (self.low < -NOISE * floor or (dry and self.low >= floor)):
            return f"{self.name} has{self._text(' values of')}"
        return None

    def require_transform(self, chosen: Transform) -> None:
        """Raise `InputError` where `prepare.transform` is one of amounts, and the variable is none."""
        if chosen.kind != "identity" and (reason := self.because(chosen.floor, dry=False)):
            raise InputError(
                f"params.yaml: prepare.transform.{self.name} is {chosen.kind}, but {reason}, expected an amount "
                "that is 0 or above, such as mm h-1: set it to identity"
            )

    def require_change(self, where: object) -> None:
        """Raise `InputError` for a variable whose values in the file `where` are all alike."""
        if self.low is None or self.high is None or not self.whole:
            return
        if self.high - self.low <= CONSTANT * max(abs(self.low), abs(self.high)):
            raise InputError(
                f"{where}: {self.name} is {self.low:g} {self.units} in every cell of the training period, there is "
                "nothing to learn: leave it out of source.variables or choose another period"
            )

    def _text(self, before: str) -> str:
        return "" if self.low is None else f"{before} {self.low:g} to {self.high:g} {self.units}"


def ranges_of(observations: xr.Dataset, names: Sequence[str], train: Split) -> list[Range]:
    """Return ranges in the training period, by at most `MOST_VALUES` values of each variable, evenly spread frames."""
    ranges = []
    for name in names:
        frames = observations[name].sel({TIME: slice(train.start, train.end)})
        stride = max(1, -(-frames.size // MOST_VALUES))
        extent = Range(name, str(observations[name].attrs["units"]), whole=stride == 1)
        for place in range(0, frames.sizes[TIME], stride):
            extent = extent.with_values(frames[place].values)
        ranges.append(extent)
    return ranges
