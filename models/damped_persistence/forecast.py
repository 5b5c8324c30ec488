"""Damped-anomaly persistence: climatology plus a fraction of the latest anomaly that shrinks with lead time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fieldcast.models.layers.damping import damping_sums
from fieldcast.models.layers.latest import latest_valid
from fieldcast.models.layers.reference import Case, Training, climatology_at, valid_times


def fit(training: Training) -> tuple[dict[str, NDArray[np.float32]], dict[str, Any]]:
    """Return the climatology and the damping (horizon, c) over all init times of the training period."""
    total = None
    for history, target, init_times in training.blocks:
        at_init = climatology_at(training.climatology, init_times[:, None])[:, 0]
        at_valid = climatology_at(training.climatology, valid_times(init_times, training.horizon, training.step))
        block = damping_sums(latest_valid(history) - at_init, target - at_valid)
        total = block if total is None else total + block
    assert total is not None  # no split is without init times
    damping = total.damping()
    minutes = training.step / np.timedelta64(1, "m")
    leads = [f"{minutes * (i + 1):g} min {value:.3f}" for i, value in enumerate(damping[:, 0])]
    return {"climatology": training.climatology, "damping": damping}, {"damping": ", ".join(leads)}


def members(history: NDArray[np.float32], case: Case) -> NDArray[np.float32]:
    """Return damped persistence as one member, (b, 1, horizon, c, h, w)."""
    climatology = case.arrays["climatology"]
    return forecast(
        history,
        case.horizon,
        climatology_at_init=climatology_at(climatology, case.init_times[:, None])[:, 0],
        climatology_at_valid=climatology_at(climatology, case.valid_times),
        damping=case.arrays["damping"],
    )[:, None]


def forecast(
    history: NDArray[np.float32],
    horizon: int,
    *,
    climatology_at_init: NDArray[np.float32],
    climatology_at_valid: NDArray[np.float32],
    damping: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Return climatology at the valid time plus the damped latest valid anomaly, (b, horizon, c, h, w).

    `history` (b, t, c, h, w), `climatology_at_init` (b, c, h, w), `climatology_at_valid` (b, horizon, c, h, w), all in
    the same units; `damping` (horizon, c). A cell without a valid value in the history gets climatology. Raises
    ValueError when `damping` or `climatology_at_valid` has another horizon.
    """
    if damping.shape[0] != horizon or climatology_at_valid.shape[1] != horizon:
        raise ValueError(
            f"horizon is {horizon}, but damping has {damping.shape[0]} and climatology_at_valid "
            f"{climatology_at_valid.shape[1]} leads"
        )
    anomaly = latest_valid(history) - climatology_at_init
    anomaly = np.where(np.isnan(anomaly), 0.0, anomaly)[:, None]
    forecasts = climatology_at_valid + damping[:, :, None, None] * anomaly
    return forecasts.astype(np.float32)
