"""Advection: optical flow of the latest frames, then semi-Lagrangian extrapolation of the last one.

Lucas-Kanade on Shi-Tomasi features and backward extrapolation, as pysteps does them (Pulkkinen et al. 2019, Germann and
Zawadzki 2002). Each channel moves by its own flow. Where the flow brings nothing in, the cell keeps its value.
"""

import numpy as np

from fieldcast.models.advection.options import AdvectionOptions
from fieldcast.models.layers.latest import latest_valid
from fieldcast.models.layers.motion import Array32, Array64, Transform, load_pysteps, motion
from fieldcast.models.layers.reference import Case


def forecast(
    history: Array32, horizon: int, *, frames: int = 4, transform: Transform = "db", dry_below: float = 0.1
) -> Array32:
    """Return the latest field moved along its flow: (b, t, c, h, w) to (b, horizon, c, h, w), in the history's units.

    The flow is that of the latest `frames` frames, in dB above `dry_below` (transform db) or standardised (identity).
    A field without motion to be seen (dry, constant, one frame) is persistence. NaN where no frame of the history is
    valid. Raises ValueError when pysteps is not installed.
    """
    load_pysteps()  # fails on the first call, not on the first rain
    latest = latest_valid(history)
    out = np.empty((len(history), horizon, *latest.shape[1:]), dtype=np.float32)
    for sample, channel in np.ndindex(*latest.shape[:2]):
        recent = history[sample, -frames:, channel]
        out[sample, :, channel] = _field(recent, latest[sample, channel], horizon, transform, dry_below)
    return out


def _field(recent: Array32, latest: Array32, horizon: int, transform: Transform, dry_below: float) -> Array32:
    """Return one field, (h, w), for all leads; `recent` (frames, h, w) gives the flow."""
    stays = np.repeat(latest[None], horizon, axis=0)
    flow = motion(recent, transform, dry_below)
    if flow is None:
        return stays
    moved = move(np.nan_to_num(latest, nan=0.0), flow, horizon)
    inside = ~np.isnan(moved) & ~np.isnan(latest)  # no inflow known: keep the value; never seen: stay missing
    return np.where(inside, moved, stays).astype(np.float32)


def move(field: Array32, flow: Array64, horizon: int) -> Array64:
    """Return the field (h, w) after 1 to `horizon` steps along `flow` (2, h, w), NaN beyond the grid."""
    extrapolate = load_pysteps()[1]
    return np.asarray(extrapolate(field.astype(np.float64), flow, list(range(1, horizon + 1))))


def members(history: Array32, case: Case) -> Array32:
    """Return advection as one member, (b, 1, horizon, c, h, w)."""
    assert isinstance(case.options, AdvectionOptions)
    return forecast(history, case.horizon, **case.options.model_dump())[:, None]
