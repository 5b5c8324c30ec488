"""Advection: optical flow of the latest frames, then semi-Lagrangian extrapolation of the last one.

Each channel moves by its own flow. What the flow brings in over the border goes on with the values of the edge, as
`models.layers.motion` says.
"""

import numpy as np
import torch

from fieldcast.models.advection.options import AdvectionOptions
from fieldcast.models.layers.latest import latest_valid
from fieldcast.models.layers.motion import Array32, Transform, carried_on, departures, motion, moved
from fieldcast.models.layers.reference import Case


def forecast(
    history: Array32, horizon: int, *, frames: int = 4, transform: Transform = "db", dry_below: float = 0.1
) -> Array32:
    """Return the latest field moved along its flow: (b, t, c, h, w) to (b, horizon, c, h, w), in the history's units.

    The flow is that of the latest `frames` frames, in dB above `dry_below` (transform db) or as they are (identity).
    A field without motion to be seen (dry, constant, one frame) is persistence. NaN where no frame of the history is
    valid.
    """
    options = AdvectionOptions(frames=frames, transform=transform, dry_below=dry_below)
    latest = latest_valid(history)
    out = np.empty((len(history), horizon, *latest.shape[1:]), dtype=np.float32)
    with torch.inference_mode():
        for channel in range(latest.shape[1]):
            flow = motion(history[:, :, channel], options)
            field = carried_on(torch.from_numpy(latest[:, channel, None]))
            out[:, :, channel] = moved(field, departures(flow, horizon))[:, :, 0].numpy()
    return np.where(np.isnan(latest)[:, None], np.float32(np.nan), out)


def members(history: Array32, case: Case) -> Array32:
    """Return advection as one member, (b, 1, horizon, c, h, w)."""
    assert isinstance(case.options, AdvectionOptions)
    return forecast(history, case.horizon, **case.options.model_dump())[:, None]
