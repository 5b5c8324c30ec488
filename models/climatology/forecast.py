"""Climatology: the mean of the training period at each valid time."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldcast.models.layers.reference import Case, Training, climatology_at


def members(history: NDArray[np.float32], case: Case) -> NDArray[np.float32]:
    """Return the climatology at each valid time as one member, (b, 1, horizon, c, h, w), float32."""
    del history
    return np.array(climatology_at(case.arrays["climatology"], case.valid_times), dtype=np.float32)[:, None]


def fit(training: Training) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Return the climatology of the training period."""
    return {"climatology": training.climatology}, {"maps": training.climatology.shape[0]}
