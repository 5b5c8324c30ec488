"""Interface of a reference forecast: what it is fitted on, and what it forecasts from besides the history.

A reference is a module `models/<kind>/forecast.py` with `members(history, case)`, physical units in and out, and, where
it learns anything, `fit(training)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

Array = NDArray[np.float32]
Block = tuple[Array, Array, NDArray[np.datetime64]]


@dataclass(frozen=True)
class Case:
    """Init times and grid of a batch of histories, with the options and the fitted arrays of the reference."""

    init_times: NDArray[np.datetime64]  # (b,)
    horizon: int
    step: np.timedelta64
    spacing_km: float  # of the grid, 1 where its units are no lengths
    options: BaseModel
    arrays: Mapping[str, Array]  # as `fit` returned them

    @property
    def valid_times(self) -> NDArray[np.datetime64]:
        """Return the valid times (b, horizon)."""
        return valid_times(self.init_times, self.horizon, self.step)


@dataclass(frozen=True)
class Training:
    """Training period of a reference, read block by block as often as wanted, and its options.

    A block is history (b, t, c, h, w), target (b, horizon, c, h, w) and init_times (b,).
    """

    options: BaseModel
    climatology: Array  # (24 or 1, c, h, w), without missing cells
    horizon: int
    step: np.timedelta64
    blocks: Iterable[Block]
    rows: Array | None = None  # area weights (h,), mean 1; None: all cells count alike


class Reference(Protocol):
    """Module of a reference."""

    def members(self, history: Array, case: Case) -> Array:
        """Return forecasts (b, m, horizon, c, h, w) of histories (b, t, c, h, w), NaN where missing."""

    def fit(self, training: Training) -> tuple[dict[str, Array], dict[str, Any]]:
        """Return the arrays that `members` needs, and facts for the model card."""


def valid_times(init_times: NDArray[np.datetime64], horizon: int, step: np.timedelta64) -> NDArray[np.datetime64]:
    """Return the valid times (b, horizon) of `horizon` steps after each of `init_times` (b,)."""
    return init_times[:, None] + step * np.arange(1, horizon + 1)


def climatology_at(climatology: Array, times: NDArray[np.datetime64]) -> Array:
    """Return the climatology (24 or 1, c, h, w) at `times` (b, n), (b, n, c, h, w), by UTC hour where it has 24."""
    hours = times.astype("datetime64[h]").astype(np.int64) % climatology.shape[0]
    result: Array = climatology[hours]
    return result
