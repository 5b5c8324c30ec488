"""Positions of tokens in space and time: features added to them, by kind; or angles that turn its queries and keys."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from fieldcast.models.video_transformer.attention.core import Rotate
from fieldcast.models.video_transformer.attention.exact.axes import AXES
from fieldcast.models.video_transformer.attention.positions import (
    angles_3d,
    nearest,
    nearest_time,
    read,
    resize,
    rotate,
    sines,
    sines_2d,
    sines_3d,
)
from fieldcast.models.video_transformer.options import VideoTransformerOptions

TIME_FEATURES = 64
Minutes = Float[Tensor, " t"]  # from init_time
GridPositions = Float[Tensor, "t h w d"]


def minutes_from_init(history: int, horizon: int, step_minutes: float, tubelet: int = 1) -> Minutes:
    """Return minutes from init_time of every slot: 0 for the last of the history, positive for leads.

    A slot of several history frames (`tubelet`) is at its last frame's time.
    """
    slots = -(-history // tubelet)
    past = tubelet * torch.arange(1 - slots, 1, dtype=torch.float32)
    return step_minutes * torch.cat([past, torch.arange(1, horizon + 1, dtype=torch.float32)])


def cells(count: int, device: torch.device) -> Float[Tensor, " {count}"]:
    """Return coordinates of rows or columns."""
    return torch.arange(count, dtype=torch.float32, device=device)


class SinePositions(nn.Module):
    """Fixed sines of row and column, and a small network of minutes, so that other steps and leads have a place too."""

    def __init__(self, options: VideoTransformerOptions, minutes: Minutes, step_minutes: float) -> None:
        super().__init__()
        self.dim = options.dim
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, self.dim), nn.SiLU(), nn.Linear(self.dim, self.dim))

    def forward(self, minutes: Minutes, rows: int, columns: int) -> GridPositions:
        """Return positions of a grid of tokens at `minutes` from init_time."""
        space = sines_2d(cells(rows, minutes.device), cells(columns, minutes.device), self.dim)
        times: Float[Tensor, "t d"] = self.mlp(sines(minutes, TIME_FEATURES))
        return torch.add(times[:, None, None], space[None])


class FixedPositions(nn.Module):
    """Fixed sines of step, row and column."""

    def __init__(self, options: VideoTransformerOptions, minutes: Minutes, step_minutes: float) -> None:
        super().__init__()
        self.dim, self.step_minutes = options.dim, step_minutes

    def forward(self, minutes: Minutes, rows: int, columns: int) -> GridPositions:
        """Return positions of a grid of tokens at `minutes` from init_time."""
        steps = minutes / self.step_minutes
        return sines_3d(steps, cells(rows, minutes.device), cells(columns, minutes.device), self.dim)


class LearnedPositions(nn.Module):
    """A learned table of times, read linearly between them, and one of places, resized to the grid."""

    minutes: Tensor

    def __init__(self, options: VideoTransformerOptions, minutes: Minutes, step_minutes: float) -> None:
        super().__init__()
        self.register_buffer("minutes", minutes, persistent=False)
        self.times = nn.Parameter(0.02 * torch.randn(len(minutes), options.dim))
        self.places = nn.Parameter(0.02 * torch.randn(*options.positions_grid, options.dim))

    def forward(self, minutes: Minutes, rows: int, columns: int) -> GridPositions:
        """Return positions of a grid of tokens at `minutes` from init_time, held before and after the table's."""
        times = read(self.times, self.minutes, minutes)
        return times[:, None, None] + resize(self.places, rows, columns)[None]


class OneHotPositions(nn.Module):
    """One linear map of the row, the column and the time, each as a one-hot vector, without in-between."""

    minutes: Tensor

    def __init__(self, options: VideoTransformerOptions, minutes: Minutes, step_minutes: float) -> None:
        super().__init__()
        self.register_buffer("minutes", minutes, persistent=False)
        self.grid = options.positions_grid
        self.linear = nn.Linear(sum(self.grid) + len(minutes), options.dim, bias=False)  # times are last

    def forward(self, minutes: Minutes, rows: int, columns: int) -> GridPositions:
        """Return positions of a grid of tokens at `minutes` from init_time: of the nearest row, column, time."""
        by_row = nearest(self.grid[0], rows, minutes.device)[None, :, None].expand(len(minutes), -1, columns, -1)
        by_column = nearest(self.grid[1], columns, minutes.device)[None, None].expand(len(minutes), rows, -1, -1)
        by_time = nearest_time(self.minutes, minutes)[:, None, None].expand(-1, rows, columns, -1)
        positions: Tensor = self.linear(torch.cat([by_row, by_column, by_time], dim=-1))
        return positions


POSITIONS: dict[str, Callable[[VideoTransformerOptions, Minutes, float], nn.Module]] = {
    "sines": SinePositions,
    "sincos3d": FixedPositions,
    "learned": LearnedPositions,
    "onehot": OneHotPositions,
}  # rotary3d and none add nothing


def turns(steps: Float[Tensor, " t"], rows: int, columns: int, head_dim: int) -> dict[str, Rotate]:
    """Return rotations of queries and keys by step, row and column, for attention along each letter of `AXES`."""
    across = (cells(rows, steps.device), cells(columns, steps.device))
    places = torch.stack(torch.meshgrid(steps, *across, indexing="ij"), dim=-1)
    first_lines = {along: rearrange(places[None], pattern)[0] for along, (_, pattern) in AXES.items()}
    return {along: partial(rotate, angles=angles_3d(line, head_dim)) for along, line in first_lines.items()}
