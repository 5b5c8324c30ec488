"""Mirror test, the forecasts: fields flipped from left to right, forecast, and flipped back.

A network that has learned how weather moves and forms forecasts them as well; one that has learned where the weather
of the training period came from does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fieldcast.models import LEARNED
from fieldcast.pipeline.datasets.channels import vector_pairs
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.forecasting.forecaster import Forecaster, forecast_members

MIRROR_TIMES = 40  # init times at most, evenly spread


def has_mirror(config: CheckpointConfig) -> bool:
    """Return whether flipped fields could be the model's too: a network that knows no place on the grid."""
    return config.kind in LEARNED and not config.anomalies and not config.coordinates


def flipped(fields: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Return fields (..., c, y, x) of variables `names` flipped along x; vectors' components along x change sign."""
    result = fields[..., ::-1].copy()
    for along_x, _ in vector_pairs(names):
        result[..., along_x, :, :] *= -1
    return result


def forecast_mirrored(
    forecaster: Forecaster, history: np.ndarray, init_times: np.ndarray, tile_cells: int | None, overlap_cells: int
) -> np.ndarray:
    """Return forecasts (b, m, horizon, c, y, x) of fields (b, t, c, y, x) that the model sees flipped."""
    config = forecaster.config
    seen = flipped(history, config.channel_names)
    members = forecast_members(forecaster, seen, init_times, tile_cells, overlap_cells)
    return flipped(members, config.target_names)
