"""A learned model with its normalisation: physical units in, physical units out."""

from __future__ import annotations

import math

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from fieldcast.models.layers.members import noise_at
from fieldcast.models.layers.outputs import OutputOptions
from fieldcast.pipeline.forecasting.normaliser import Normaliser

DAY, YEAR = 86_400, 31_556_952  # seconds; the Gregorian calendar's mean year


def calendar_planes(seconds: Tensor, h: int, w: int) -> Tensor:
    """Return sine and cosine of the hour of the day and of the day of the year at `seconds` (b, t), (b, t, 4, h, w).

    UTC, from seconds since 1970; a year is the mean one, so that its day is off by less than one.
    """
    angles = torch.stack([seconds % period * (2 * math.pi / period) for period in (DAY, YEAR)], dim=-1)
    waves = rearrange([angles.sin(), angles.cos()], "wave b t period -> b t (period wave)")
    return repeat(waves.float(), "b t c -> b t c h w", h=h, w=w)


def coordinate_planes(origin: Tensor, grid: tuple[int, int], steps: int, h: int, w: int) -> Tensor:
    """Return row and column from -1 to 1 over the whole grid, of crops at `origin` (b, 2): (b, steps, 2, h, w).

    On a grid of latitudes and longitudes they are these, in other units.
    """
    rows, columns = (
        2 * (origin[:, i, None] + torch.arange(side, device=origin.device)) / max(cells - 1, 1) - 1
        for i, (side, cells) in enumerate(zip((h, w), grid, strict=True))
    )
    planes = [repeat(rows, "b h -> b t h w", t=steps, w=w), repeat(columns, "b w -> b t h w", t=steps, h=h)]
    return torch.stack(planes, dim=2).float()


class Network(nn.Module):
    """A model from `models/` between `normalise` and `restore`; all that a forecast needs is in its state.

    With `calendar` and a `grid` (rows, columns) it shows the model when and where a history is, behind its channels.
    """

    def __init__(
        self,
        model: nn.Module,
        normaliser: Normaliser,
        step_seconds: int,
        options: OutputOptions,
        *,
        calendar: bool = False,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.normaliser, self.step_seconds = model, normaliser, step_seconds
        self.output, self.members = options.output, options.members
        self.calendar, self.grid = calendar, grid

    @property
    def supports_teacher_forcing(self) -> bool:
        """Return whether the model is fed its own forecasts, which a training may replace by the truth."""
        return bool(getattr(self.model, "supports_teacher_forcing", False))

    def forward(
        self,
        history: Tensor,
        init_time: Tensor,
        origin: Tensor,
        *,
        target: Tensor | None = None,
        truth: Tensor | None = None,
    ) -> Tensor:
        """Return normalised forecasts (b, [m,] horizon, c_target, h, w) of a physical history (b, t, c, h, w).

        `init_time` (b,) is in seconds since 1970; `origin` (b, 2) is the crop's first row and column. An ensemble's
        noise is drawn anew in training; outside it follows from the init time, whatever the batch or the tile. Where
        `truth` (b, horizon) is true, a model that takes it makes later leads from the normalised `target` of this lead
        in place of its own forecast; NaN in it is a gap, as in the history.
        """
        steps = torch.arange(1 - history.shape[1], 1, device=history.device)
        z = self._inputs(history, self._seconds(init_time, steps), origin)
        noise = None if self.training or self.output != "ensemble" else noise_at(init_time, self.members or 1)
        forecast: Tensor = self.model(z, noise) if truth is None else self.model(z, noise, target=target, truth=truth)
        return forecast

    def _inputs(self, history: Tensor, seconds: Tensor, origin: Tensor) -> Tensor:
        z = self.normaliser.normalise(history, seconds, origin)
        h, w = history.shape[-2:]
        planes = [z]
        if self.calendar:
            planes.append(calendar_planes(seconds, h, w).to(z.dtype))
        if self.grid is not None:
            planes.append(coordinate_planes(origin, self.grid, z.shape[1], h, w).to(z.dtype))
        return torch.cat(planes, dim=2) if len(planes) > 1 else z

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
