"""A learned model with its normalisation: physical units in, physical units out."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.normalise import Normaliser


class Network(nn.Module):
    """A model from `models/` between `normalise` and `restore`; all that a forecast needs is in its state."""

    def __init__(self, model: nn.Module, normaliser: Normaliser, step_seconds: int) -> None:
        super().__init__()
        self.model, self.normaliser, self.step_seconds = model, normaliser, step_seconds

    def forward(self, history: Tensor, init_time: Tensor, origin: Tensor) -> Tensor:
        """Return normalised forecasts (b, horizon, c_target, h, w) of a physical history (b, t, c, h, w).

        `init_time` (b,) is in seconds since 1970; `origin` (b, 2) is the crop's first row and column.
        """
        steps = torch.arange(1 - history.shape[1], 1, device=history.device)
        z = self.normaliser.normalise(history, self._seconds(init_time, steps), origin)
        forecast: Tensor = self.model(z)
        return forecast

    def normalise_target(self, target: Tensor, init_time: Tensor, origin: Tensor) -> Tensor:
        """Return the normalised values of a physical target (b, horizon, c_target, h, w)."""
        return self.normaliser.normalise(target, self._lead_seconds(init_time, target.shape[1]), origin)

    def forecast(self, history: Tensor, init_time: Tensor, origin: Tensor) -> Tensor:
        """Return physical forecasts (b, horizon, c_target, h, w), inside the variables' valid range."""
        z = self(history, init_time, origin)
        return self.normaliser.restore(z, self._lead_seconds(init_time, z.shape[1]), origin)

    def _lead_seconds(self, init_time: Tensor, horizon: int) -> Tensor:
        return self._seconds(init_time, torch.arange(1, horizon + 1, device=init_time.device))

    def _seconds(self, init_time: Tensor, steps: Tensor) -> Tensor:
        return init_time[:, None] + steps[None, :] * self.step_seconds


def forecast_batch(network: Network, history: np.ndarray, seconds: np.ndarray, origin: tuple[int, int]) -> np.ndarray:
    """Return numpy forecasts (b, horizon, c, h, w) in physical units for crops that all start at `origin`."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        forecast = network.forecast(
            torch.from_numpy(history).to(device),
            torch.from_numpy(seconds).to(device),
            torch.tensor([origin] * len(history), device=device),
        )
    result: np.ndarray = forecast.cpu().numpy()
    return result
