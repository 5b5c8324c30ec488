"""Persistence: the latest valid value of every cell, at every lead time."""

import numpy as np
from einops import repeat
from numpy.typing import NDArray

from fieldcast.models.layers.latest import latest_valid
from fieldcast.models.layers.reference import Case


def forecast(history: NDArray[np.float32], horizon: int) -> NDArray[np.float32]:
    """Return the latest valid value of each cell for all leads: (b, t, c, h, w) to (b, horizon, c, h, w).

    Units as the history. NaN where no frame of the history is valid.
    """
    return repeat(latest_valid(history), "b c h w -> b f c h w", f=horizon)


def members(history: NDArray[np.float32], case: Case) -> NDArray[np.float32]:
    """Return persistence as one member, (b, 1, horizon, c, h, w)."""
    return forecast(history, case.horizon)[:, None]
