"""Where and when a token is: fixed sines in space, sines of minutes from init_time in time."""

import math

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

LONGEST = 10_000.0  # ratio of the longest to the shortest wavelength (Vaswani et al. 2017)
TIME_FEATURES = 64


def sines(values: Float[Tensor, " n"], features: int) -> Float[Tensor, "n d"]:
    """Sines, then cosines, of values * LONGEST ** (-k / (features / 2)), in the values' precision."""
    half = features // 2
    rates = torch.exp(-math.log(LONGEST) * torch.arange(half, dtype=values.dtype, device=values.device) / half)
    angles = values[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def space_positions(height: int, width: int, dim: int, device: torch.device) -> Float[Tensor, "h*w d"]:
    """Fixed 2-D sine/cosine positions of a grid, row by row: half the features for the row, half for the column."""
    rows = sines(torch.arange(height, dtype=torch.float32, device=device), dim // 2)
    columns = sines(torch.arange(width, dtype=torch.float32, device=device), dim // 2)
    grid = torch.cat([rows[:, None].expand(-1, width, -1), columns[None].expand(height, -1, -1)], dim=-1)
    return rearrange(grid, "h w d -> (h w) d")


def minutes_from_init(history: int, horizon: int, step_minutes: float) -> Float[Tensor, " t"]:
    """Minutes from init_time of every slot: 0 for the last history frame, positive for leads."""
    return step_minutes * torch.arange(1 - history, horizon + 1, dtype=torch.float32)


class TimePositions(nn.Module):
    """A small network from minutes to features, so that other steps and leads have a place too."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, minutes: Float[Tensor, " t"]) -> Float[Tensor, "t d"]:
        """Positions in time of slots at `minutes` from init_time."""
        positions: Tensor = self.mlp(sines(minutes, TIME_FEATURES))
        return positions
