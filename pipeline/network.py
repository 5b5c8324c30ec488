"""A learned model with its normalisation: physical units in, physical units out."""

from __future__ import annotations

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

from models.members import noise_at
from models.outputs import OutputOptions
from pipeline.normalise import Normaliser


class Network(nn.Module):
    """A model from `models/` between `normalise` and `restore`; all that a forecast needs is in its state."""

    def __init__(self, model: nn.Module, normaliser: Normaliser, step_seconds: int, options: OutputOptions) -> None:
        super().__init__()
        self.model, self.normaliser, self.step_seconds = model, normaliser, step_seconds
        self.output, self.members = options.output, options.members

    def forward(self, history: Tensor, init_time: Tensor, origin: Tensor) -> Tensor:
        """Return normalised forecasts (b, [m,] horizon, c_target, h, w) of a physical history (b, t, c, h, w).

        `init_time` (b,) is in seconds since 1970; `origin` (b, 2) is the crop's first row and column. An ensemble's
        noise is drawn anew in training; outside it follows from the init time, whatever the batch or the tile.
        """
        steps = torch.arange(1 - history.shape[1], 1, device=history.device)
        z = self.normaliser.normalise(history, self._seconds(init_time, steps), origin)
        if self.output != "ensemble" or self.training or self.members is None:
            forecast: Tensor = self.model(z)
        else:
            forecast = self.model(z, noise_at(init_time, self.members))
        return forecast

    def normalise_target(self, target: Tensor, init_time: Tensor, origin: Tensor) -> Tensor:
        """Return the normalised values of a physical target (b, horizon, c_target, h, w)."""
        return self.normaliser.normalise(target, self._lead_seconds(init_time, target.shape[1]), origin)

    def forecast(self, history: Tensor, init_time: Tensor, origin: Tensor) -> Tensor:
        """Return physical forecasts (b, m, horizon, c_target, h, w), inside the variables' valid range.

        m is 1 for point output; quantiles rise along m.
        """
        z = self(history, init_time, origin)
        z = z[:, None] if self.output == "point" else z
        z = z.sort(dim=1).values if self.output == "quantiles" else z  # each is learned by itself, and they may cross
        members = z.shape[1]
        flat = self.normaliser.restore(
            rearrange(z, "b m f c h w -> (b m) f c h w"),
            self._lead_seconds(init_time, z.shape[2]).repeat_interleave(members, dim=0),
            origin.repeat_interleave(members, dim=0),
        )
        return rearrange(flat, "(b m) f c h w -> b m f c h w", m=members)

    def _lead_seconds(self, init_time: Tensor, horizon: int) -> Tensor:
        return self._seconds(init_time, torch.arange(1, horizon + 1, device=init_time.device))

    def _seconds(self, init_time: Tensor, steps: Tensor) -> Tensor:
        return init_time[:, None] + steps[None, :] * self.step_seconds


def forecast_batch(network: Network, history: np.ndarray, seconds: np.ndarray, origin: tuple[int, int]) -> np.ndarray:
    """Return numpy forecasts (b, m, horizon, c, h, w) in physical units for crops that all start at `origin`."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        forecast = network.forecast(
            torch.from_numpy(history).to(device),
            torch.from_numpy(seconds).to(device),
            torch.tensor([origin] * len(history), device=device),
        )
    result: np.ndarray = forecast.cpu().numpy()
    return result
