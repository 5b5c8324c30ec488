"""Base of a learned forecast: a reference that was fitted on the same training period and travels in the checkpoint.

A network's output counts as increments on it. With it in hand, fields are also known to move: the flow of the first
target, for a network in the moving frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from fieldcast import models
from fieldcast.models.layers.motion import motion
from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.models.layers.reference import Case
from fieldcast.pipeline.datasets.times import from_seconds


@dataclass(frozen=True)
class Guide:
    """What a network is given besides the history: the flow, and the forecast that it changes, of whole fields."""

    kinds: tuple[str, ...]  # of the base at each lead; (): the history's own mixture
    moving: bool
    motion: MotionOptions
    targets: int
    horizon: int
    step: np.timedelta64
    spacing_km: float
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)  # `<kind>.<name>`, as its `fit` returned them

    def flow(self, history: np.ndarray) -> Tensor | None:
        """Return the flow (b, 2, h, w) of the first target in a history (b, t, c, h, w); None in a fixed frame."""
        return motion(history[:, :, 0], self.motion) if self.moving else None

    def base(self, history: np.ndarray, seconds: np.ndarray) -> Tensor | None:
        """Return the base (b, horizon, c_target, h, w) in physical units, NaN where nothing was seen; None without.

        `seconds` (b,) since 1970 are the init times.
        """
        if not self.kinds:
            return None
        forecasts = {kind: self._forecast(kind, history, seconds) for kind in dict.fromkeys(self.kinds)}
        by_lead = [forecasts[kind][:, lead] for lead, kind in enumerate(self.kinds)]
        return torch.from_numpy(np.stack(by_lead, axis=1))

    def _forecast(self, kind: str, history: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        """Return the forecast (b, horizon, c_target, h, w) of the reference of this kind."""
        arrays = {
            name.removeprefix(f"{kind}."): array for name, array in self.arrays.items() if name.startswith(f"{kind}.")
        }
        options = base_options(kind, self.motion)
        case = Case(from_seconds(seconds), self.horizon, self.step, self.spacing_km, options, arrays)
        members = models.reference(kind).members(history[:, :, : self.targets], case)
        forecast: np.ndarray = members[:, 0]
        return forecast


def base_options(kind: str, options: MotionOptions) -> BaseModel:
    """Return the options of a base of this kind: its defaults, with the given estimate of motion."""
    chosen = models.OPTIONS[kind]
    return chosen.model_validate(options.model_dump() if issubclass(chosen, MotionOptions) else {})
