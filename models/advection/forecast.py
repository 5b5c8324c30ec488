"""Advection: optical flow of the latest frames, then semi-Lagrangian extrapolation of the last one.

Lucas-Kanade on Shi-Tomasi features and backward extrapolation, as pysteps does them (Pulkkinen et al. 2019, Germann and
Zawadzki 2002). Each channel moves by its own flow. Where the flow brings nothing in, the cell keeps its value.
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.latest import latest_valid

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]
Transform = Literal["db", "identity"]

MISSING = "model 'advection' needs pysteps: pip install fieldcast[advection] (it is compiled: needs a C compiler)"


@cache
def load_pysteps() -> tuple[Callable[..., Array64], Callable[..., Array64]]:
    """pysteps' dense Lucas-Kanade and semi-Lagrangian extrapolation; ValueError that names the fix if not installed.

    Loaded at first use, in some seconds; what it prints while loading is dropped.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import cv2
            from pysteps.extrapolation.semilagrangian import extrapolate
            from pysteps.motion.lucaskanade import dense_lucaskanade
    except ImportError as error:
        raise ValueError(f"{MISSING}: {error}") from error
    assert cv2
    return dense_lucaskanade, extrapolate


def forecast(
    history: Array32, horizon: int, *, frames: int = 4, transform: Transform = "db", dry_below: float = 0.1
) -> Array32:
    """The latest field moved along its flow: (b, t, c, h, w) to (b, horizon, c, h, w), units as the history.

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
    """One field, (h, w), for all leads; `recent` (frames, h, w) gives the flow."""
    stays = np.repeat(latest[None], horizon, axis=0)
    flow = motion(recent, transform, dry_below)
    if flow is None:
        return stays
    moved = move(np.nan_to_num(latest, nan=0.0), flow, horizon)
    inside = ~np.isnan(moved) & ~np.isnan(latest)  # no inflow known: keep the value; never seen: stay missing
    return np.where(inside, moved, stays).astype(np.float32)


def move(field: Array32, flow: Array64, horizon: int) -> Array64:
    """The field (h, w) after 1 to `horizon` steps along `flow` (2, h, w); NaN where it comes from outside the grid."""
    extrapolate = load_pysteps()[1]
    return np.asarray(extrapolate(field.astype(np.float64), flow, list(range(1, horizon + 1))))


def motion(recent: Array32, transform: Transform, dry_below: float) -> Array64 | None:
    """The flow (2: x and y, h, w) in cells per step of frames (t, h, w) with gaps; None where nothing moves."""
    scaled = _scale(_filled(recent), transform, dry_below)
    if len(scaled) < 2 or np.ptp(scaled[-1]) == 0 or np.ptp(scaled, axis=0).max() == 0:
        return None
    track = load_pysteps()[0]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frames without any feature to follow
        flow = np.asarray(track(scaled, fd_kwargs={"min_distance": 4}))
    return flow if np.isfinite(flow).all() and flow.any() else None


def _filled(frames: Array32) -> Array64:
    """Frames whose gaps take the latest earlier valid value, else 0."""
    filled = np.zeros(frames.shape)
    before = np.zeros(frames.shape[1:])
    for step, frame in enumerate(frames):
        before = filled[step] = np.where(np.isnan(frame), before, frame)
    return filled


def _scale(frames: Array64, transform: Transform, dry_below: float) -> Array64:
    """Frames in dB above the dry threshold, or standardised; all equal if there is nothing to see."""
    if transform == "db":
        return 10 * np.log10(np.maximum(frames, dry_below) / dry_below)
    spread = frames.std()
    return (frames - frames.mean()) / spread if spread > 0 else np.zeros_like(frames)
