"""Latest valid values of a history, in numpy, for the reference forecasts."""

import numpy as np
from numpy.typing import NDArray


def latest_valid(history: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return each cell's latest value that is not NaN, (b, t, c, h, w) to (b, c, h, w); NaN without a valid frame."""
    latest = history[:, 0]
    for step in range(1, history.shape[1]):
        frame = history[:, step]
        latest = np.where(np.isnan(frame), latest, frame)
    return latest


def carried_forward(frames: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return frames (t, h, w) whose missing cells take the latest earlier valid value, else 0."""
    filled = np.zeros(frames.shape)
    before = np.zeros(frames.shape[1:])
    for step, frame in enumerate(frames):
        before = filled[step] = np.where(np.isnan(frame), before, frame)
    return filled
