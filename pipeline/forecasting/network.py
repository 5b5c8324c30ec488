"""A learned model with its normalisation: physical units in, physical units out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from fieldcast.models.layers.flow_correction import FlowCorrection, moved_on
from fieldcast.models.layers.frame import brought_along, inputs, outputs
from fieldcast.models.layers.members import noise_at
from fieldcast.models.layers.motion import departures
from fieldcast.models.layers.outputs import OutputOptions
from fieldcast.models.layers.sizes import Frame
from fieldcast.pipeline.forecasting.base import Guide
from fieldcast.pipeline.forecasting.normaliser import Normaliser
from fieldcast.pipeline.forecasting.tiling import Tiles, by_tiles

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


@dataclass(frozen=True)
class Given:
    """Parts of the input of a network's model."""

    z: Tensor  # (b, t, v, h, w), normalised
    planes: Tensor  # (b, t, p, h, w), of time and place
    paths: Tensor | None  # (b, n, 2, h, w), in the moving frame
    base: Tensor | None  # (b, horizon, c_target, h, w), normalised
    noise: Tensor | None  # (b, m, k), of an ensemble outside training


class Network(nn.Module):
    """A model from `models/` between `normalise` and `restore`; all that a forecast needs is in its state.

    With `calendar` and a `grid` (rows, columns) it shows the model when and where a history is, behind its channels.
    `guide` gives the flow and the base of whole fields; those of a crop are cut out of them and passed in. A
    `correction` changes that flow, and moves the base along.
    """

    share: Tensor

    def __init__(
        self,
        model: nn.Module,
        normaliser: Normaliser,
        step_seconds: int,
        options: OutputOptions,
        *,
        frame: Frame,
        guide: Guide,
        correction: FlowCorrection | None = None,
        calendar: bool = False,
        grid: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.normaliser, self.step_seconds = model, normaliser, step_seconds
        self.output, self.members = options.output, options.members
        self.frame, self.guide, self.correction = frame, guide, correction
        self.calendar, self.grid = calendar, grid
        if frame.based:  # of the increments that count at each lead: 0 where they did not help in the validation period
            self.register_buffer("share", torch.ones(frame.horizon))

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
        flow: Tensor | None = None,
        base: Tensor | None = None,
        target: Tensor | None = None,
        truth: Tensor | None = None,
        tiles: Tiles | None = None,
    ) -> Tensor:
        """Return normalised forecasts (b, [m,] horizon, c_target, h, w) of a physical history (b, t, c, h, w).

        `init_time` (b,) is in seconds since 1970; `origin` (b, 2) is the crop's first row and column. `flow` (b, 2, h,
        w) and the physical `base` (b, horizon, c_target, h, w) are those of `guide`, found here where they are not
        given. An ensemble's noise is drawn anew in training; outside it follows from the init time, whatever the batch
        or the tile. Where `truth` (b, horizon) is true, a model that takes it makes later leads from the normalised
        `target` of this lead in place of its own forecast; NaN in it is a gap, as in the history.
        """
        given = self.given(history, init_time, origin, flow, base)
        z = inputs(self.frame, given.z, given.planes, given.paths, given.base)
        if truth is not None:
            output: Tensor = self.model(z, given.noise, target=target, truth=truth)
        elif tiles is None:
            output = self.model(z, given.noise)
        else:
            output = by_tiles(lambda part: self.model(part, given.noise), z, tiles)
        return outputs(self.frame, output, z, given.paths, given.base, self.share if self.frame.based else None)

    def guided(
        self, history: Tensor, init_time: Tensor, flow: Tensor | None, base: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return flow and base, from the history where they are not given and the network needs them."""
        if flow is None and self.frame.moving:
            flow = self.guide.flow(history.detach().cpu().numpy())
        if base is None and self.frame.based:
            base = self.guide.base(history.detach().cpu().numpy(), init_time.cpu().numpy())
        device = history.device
        return (None if flow is None else flow.to(device)), (None if base is None else base.to(device))

    def given(
        self, history: Tensor, init_time: Tensor, origin: Tensor, flow: Tensor | None, base: Tensor | None
    ) -> Given:
        """Return all that the model's input is made of; `flow` and `base` are found where they are not given."""
        flow, base = self.guided(history, init_time, flow, base)
        seconds = self._seconds(init_time, torch.arange(1 - history.shape[1], 1, device=history.device))
        z = self.normaliser.normalise(history, seconds, origin)
        if base is not None:
            base = self.normalise_target(base, init_time, origin).nan_to_num(0.0)  # never seen: the forecast is masked
        paths = None if flow is None else departures(flow, self.frame.steps)
        if flow is not None and paths is not None and self.correction is not None:
            change = self.correction(brought_along(z, paths), flow)
            paths = departures(flow + change, self.frame.steps)
            base = None if base is None else self._moved_on(base, change)
        return Given(
            z,
            self._planes(z, seconds, origin),
            paths,
            base,
            None if self.training or self.output != "ensemble" else noise_at(init_time, self.members or 1),
        )

    def _moved_on(self, base: Tensor, change: Tensor) -> Tensor:
        """Return the base along the corrected flow, but as it is at leads that keep it."""
        corrected = moved_on(base, change, exact=not self.training)
        return torch.where(self.share[:, None, None, None] > 0, corrected, base)

    def _planes(self, z: Tensor, seconds: Tensor, origin: Tensor) -> Tensor:
        h, w = z.shape[-2:]
        planes = [z[:, :, :0]]
        if self.calendar:
            planes.append(calendar_planes(seconds, h, w).to(z.dtype))
        if self.grid is not None:
            planes.append(coordinate_planes(origin, self.grid, z.shape[1], h, w).to(z.dtype))
        return torch.cat(planes, dim=2)

    def normalise_target(self, target: Tensor, init_time: Tensor, origin: Tensor) -> Tensor:
        """Return the normalised values of a physical target (b, horizon, c_target, h, w)."""
        return self.normaliser.normalise(target, self._lead_seconds(init_time, target.shape[1]), origin)

    def restore(self, z: Tensor, init_time: Tensor, origin: Tensor, *, bounded: bool = True) -> Tensor:
        """Return physical forecasts of normalised ones (b, [m,] horizon, c_target, h, w).

        They are inside the variables' valid range, unless `bounded` is false, as a loss needs it.
        """
        together = z if z.ndim == 6 else z[:, None]
        members = together.shape[1]
        flat = self.normaliser.restore(
            rearrange(together, "b m f c h w -> (b m) f c h w"),
            self._lead_seconds(init_time, together.shape[2]).repeat_interleave(members, dim=0),
            origin.repeat_interleave(members, dim=0),
            bounded=bounded,
        )
        fields = rearrange(flat, "(b m) f c h w -> b m f c h w", m=members)
        return fields if z.ndim == 6 else fields[:, 0]

    def forecast(self, history: Tensor, init_time: Tensor, origin: Tensor, tiles: Tiles | None = None) -> Tensor:
        """Return physical forecasts (b, m, horizon, c_target, h, w), inside the variables' valid range.

        m is 1 for point output; quantiles rise along m. Where the increments are 0 they are the base, to the bit. The
        model sees whole fields, or `tiles` of them, whose outputs are blended.
        """
        flow, base = self.guided(history, init_time, None, None)
        z = self(history, init_time, origin, flow=flow, base=base, tiles=tiles)
        z = z[:, None] if self.output == "point" else z
        z = z.sort(dim=1).values if self.output == "quantiles" else z  # each is learned by itself, and they may cross
        fields = self.restore(z, init_time, origin)
        if base is None:
            return fields
        again = self.restore(self.normalise_target(base, init_time, origin), init_time, origin)
        return fields + (base - again)[:, None]  # what rounding there and back has taken from the base

    def _lead_seconds(self, init_time: Tensor, horizon: int) -> Tensor:
        return self._seconds(init_time, torch.arange(1, horizon + 1, device=init_time.device))

    def _seconds(self, init_time: Tensor, steps: Tensor) -> Tensor:
        return init_time[:, None] + steps[None, :] * self.step_seconds


def forecast_batch(
    network: Network,
    history: np.ndarray,
    seconds: np.ndarray,
    tiles: Tiles | None = None,
    origin: tuple[int, int] = (0, 0),
) -> np.ndarray:
    """Return numpy forecasts (b, m, horizon, c, y, x) in physical units of fields that all start at `origin`."""
    device = next(network.parameters()).device
    with torch.inference_mode():
        forecast = network.forecast(
            torch.from_numpy(history).to(device),
            torch.from_numpy(seconds).to(device),
            torch.tensor([origin] * len(history), device=device),
            tiles,
        )
    result: np.ndarray = forecast.cpu().numpy()
    return result
