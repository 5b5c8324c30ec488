"""The pieces of the trunk: pre-norm residual branches of attention and SwiGLU, in layers."""

from itertools import count

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from fieldcast.models.video_transformer.attention.core import Rotate
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.attention.interface import Grid
from fieldcast.models.video_transformer.attention.patterns import build_pattern
from fieldcast.models.video_transformer.options import VideoTransformerOptions

Turns = dict[str, Rotate]  # by letter of the axes along which attention runs


def drop_path(branch: Float[Tensor, "b *any"], share: float, *, training: bool) -> Float[Tensor, "b *any"]:
    """Return the branch with whole samples set to 0, others scaled up (Huang et al. 2016); unchanged in evaluation."""
    if not training or share == 0:
        return branch
    one_each = branch.new_ones(len(branch), *(1,) * (branch.ndim - 1))
    return branch * functional.dropout(one_each, share)


class SwiGLU(nn.Module):
    """W3(silu(W1 x) * W2 x), without biases (Shazeer 2020)."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, tokens: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
        """Return each token transformed."""
        out: Tensor = self.down(functional.silu(self.gate(tokens)) * self.up(tokens))
        return out


class Branch(nn.Module):
    """Regularisation of a residual branch in training: dropout of features, drop-path of samples."""

    def __init__(self, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.dropout, self.drop_path = dropout, drop_path

    def forward(self, branch: Grid) -> Grid:
        """Return the branch, thinned in training, unchanged otherwise."""
        return drop_path(
            functional.dropout(branch, self.dropout, self.training), self.drop_path, training=self.training
        )


def mixed(mixer: nn.Module, grid: Grid, turns: Turns | None) -> Grid:
    """Return the grid, mixed; where there are `turns`, along axes and with queries and keys turned."""
    if turns is None:
        plain: Grid = mixer(grid)
        return plain
    assert isinstance(mixer, AlongAxes)
    turned: Grid = mixer(grid, rotate=turns[mixer.along])
    return turned


class SubLayer(nn.Module):
    """x + mixer(LN x), then x + SwiGLU(LN x)."""

    def __init__(self, options: VideoTransformerOptions, index: int, drop_path: float) -> None:
        super().__init__()
        dim = options.dim
        self.mixer_norm, self.mixer = nn.LayerNorm(dim), build_pattern(options, dim, options.heads, index)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), SwiGLU(dim, round(options.mlp_ratio * dim))
        self.thin = Branch(options.dropout, drop_path)

    def forward(self, grid: Grid, turns: Turns | None = None) -> Grid:
        """Return tokens mixed, then each transformed."""
        grid = grid + self.thin(mixed(self.mixer, self.mixer_norm(grid), turns))
        mlp: Grid = self.thin(self.mlp(self.mlp_norm(grid)))
        return grid + mlp


class DividedBlock(nn.Module):
    """Attention along time, then space, then one MLP: the block of TimeSformer (Bertasius et al. 2021).

    The linear after the temporal attention starts at zero, so that mixing along time fades in.
    """

    def __init__(self, options: VideoTransformerOptions, index: int, drop_path: float) -> None:
        super().__init__()
        dim, heads = options.dim, options.heads
        self.time_norm, self.time_mixer = nn.LayerNorm(dim), build_pattern(options, dim, heads, 2 * index)
        self.time_out = nn.Linear(dim, dim)
        self.space_norm, self.space_mixer = nn.LayerNorm(dim), build_pattern(options, dim, heads, 2 * index + 1)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp: nn.Module = SwiGLU(dim, round(options.mlp_ratio * dim))
        self.thin = Branch(options.dropout, drop_path)
        nn.init.zeros_(self.time_out.weight)
        nn.init.zeros_(self.time_out.bias)

    def forward(self, grid: Grid, turns: Turns | None = None) -> Grid:
        """Return tokens mixed along time, then space, then each transformed."""
        grid = grid + self.thin(self.time_out(mixed(self.time_mixer, self.time_norm(grid), turns)))
        grid = grid + self.thin(mixed(self.space_mixer, self.space_norm(grid), turns))
        mlp: Grid = self.thin(self.mlp(self.mlp_norm(grid)))
        return grid + mlp


def rising(share: float, number: int) -> list[float]:
    """Return drop-path shares from 0 for the first to `share` for the last of so many sub-layers."""
    return [share * index / max(number - 1, 1) for index in range(number)]


class Trunk(nn.Sequential):
    """All layers: a divided block each, or as many sub-layers each as the order has letters."""

    def __init__(self, options: VideoTransformerOptions) -> None:
        divided = options.attention == "divided"
        shares = rising(options.drop_path, options.layers * (1 if divided else len(options.order)))
        super().__init__(*map(DividedBlock if divided else SubLayer, [options] * len(shares), count(), shares))
        self.sparing = options.checkpoint_activations

    def forward(self, grid: Grid, turns: Turns | None = None) -> Grid:
        """Return the grid after all layers."""
        for layer in self:
            if self.sparing and torch.is_grad_enabled():
                grid = checkpoint(layer, grid, turns, use_reentrant=False)
            else:
                grid = layer(grid, turns)
        return grid
