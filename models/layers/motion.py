"""Motion of fields: optical flow of the latest frames, for the references that extrapolate.

Lucas-Kanade on Shi-Tomasi features, as pysteps does it (Pulkkinen et al. 2019).
"""

import contextlib
import io
import warnings
from collections.abc import Callable
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]
Transform = Literal["db", "identity"]

MISSING = (
    "models 'advection' and 'steps' need pysteps: pip install fieldcast[advection] (it is compiled: needs a C compiler)"
)


@cache
def load_pysteps() -> tuple[Callable[..., Array64], Callable[..., Array64]]:
    """Return pysteps' dense Lucas-Kanade and semi-Lagrangian extrapolation; raise ValueError if not installed.

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


def motion(recent: Array32, transform: Transform, dry_below: float) -> Array64 | None:
    """Return the flow (2: x and y, h, w), in cells a step, of frames (t, h, w) with NaN; None without motion."""
    scaled = scale(filled(recent), transform, dry_below)
    if len(scaled) < 2 or np.ptp(scaled[-1]) == 0 or np.ptp(scaled, axis=0).max() == 0:
        return None
    track = load_pysteps()[0]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frames without any feature to follow
        flow = np.asarray(track(scaled, fd_kwargs={"min_distance": 4}))
    return flow if np.isfinite(flow).all() and flow.any() else None


def filled(frames: Array32) -> Array64:
    """Return frames whose missing cells take the latest earlier valid value, else 0."""
    filled = np.zeros(frames.shape)
    before = np.zeros(frames.shape[1:])
    for step, frame in enumerate(frames):
        before = filled[step] = np.where(np.isnan(frame), before, frame)
    return filled


def scale(frames: Array64, transform: Transform, dry_below: float) -> Array64:
    """Return frames in dB above the dry threshold, or standardised (0 for constant frames)."""
    if transform == "db":
        return 10 * np.log10(np.maximum(frames, dry_below) / dry_below)
    spread = frames.std()
    return (frames - frames.mean()) / spread if spread > 0 else np.zeros_like(frames)
