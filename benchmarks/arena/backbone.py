"""Network in which attention patterns are swapped: everything but the mixing is equal."""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

FASTEST, SLOWEST = 2.5, 0.4  # radians a cell or a frame
LOUDNESS = 3.0  # amplitude of positions: with 1, networks are slower to begin to look at other tokens


def positions(t: int, h: int, w: int, dim: int) -> Float[Tensor, "t h w dim"]:
    """Return sines and cosines of frame, row and column, about a third of the features each; the rest is 0."""
    table = torch.zeros(t, h, w, dim)
    count = dim // 6
    rates = FASTEST * (SLOWEST / FASTEST) ** (torch.arange(count) / max(count - 1, 1))
    for axis, length in enumerate((t, h, w)):
        shape = [1, 1, 1, count]
        shape[axis] = length
        angle = (torch.arange(length)[:, None] * rates).reshape(shape)
        start = 2 * count * axis
        table[..., start : start + 2 * count] = LOUDNESS * torch.cat([angle.sin(), angle.cos()], dim=-1)
    return table


class SubLayer(nn.Module):
    """x + mixer(LN x), then x + MLP(LN x)."""

    def __init__(self, dim: int, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = nn.LayerNorm(dim), mixer
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, grid: Float[Tensor, "b t h w d"]) -> Float[Tensor, "b t h w d"]:
        """Return the tokens mixed, then each transformed."""
        grid = grid + self.mixer(self.mixer_norm(grid))
        transformed: Tensor = self.mlp(self.mlp_norm(grid))
        return grid + transformed


class Backbone(nn.Module):
    """Sub-layers over tokens of one cell each, with positions; one yes-or-no answer at every token."""

    def __init__(self, channels: int, dim: int, mixers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.dim = dim
        self.embedding = nn.Linear(channels, dim)
        self.trunk = nn.Sequential(*(SubLayer(dim, mixer) for mixer in mixers))
        self.norm, self.readout = nn.LayerNorm(dim), nn.Linear(dim, 1)

    def forward(self, films: Float[Tensor, "b t h w c"]) -> Float[Tensor, "b t h w"]:
        """Return the log odds of yes."""
        _, t, h, w, _ = films.shape
        grid = self.trunk(self.embedding(films) + positions(t, h, w, self.dim).to(films.device))
        odds: Tensor = rearrange(self.readout(self.norm(grid)), "b t h w 1 -> b t h w")
        return odds
