"""Deformable attention: each token samples a few places of each map, at offsets that it chooses itself.

Zhu et al. 2021, "Deformable DETR" (arXiv:2010.04159), sections 4.1 and A.2, for maps of several scales; here the frames
of a grid are maps too, so that a token can look where the air has come from. Places and offsets are (column, row), in
cells of the map: 0 is the centre of the first cell.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.interface import Grid, Valid
from fieldcast.models.video_transformer.attention.positions import sines

LAG_FEATURES = 8  # sines of the lag, by which each query weighs frames
SLOW = 0.1  # these offsets learn so many times slower than other weights do under Adam, as in the paper


def sampled(maps: Float[Tensor, "g d h w"], at: Float[Tensor, "g n p 2"]) -> Float[Tensor, "g d n p"]:
    """Return values between cells, bilinear, 0 beyond the edges."""
    column, row = at.unbind(dim=-1)
    height, width = maps.shape[-2:]
    size = at.new_tensor([width, height])
    grid = (2 * torch.stack([column, row], dim=-1) + 1) / size - 1  # -1 and 1 are the outer edges of the map
    return functional.grid_sample(maps, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def mix_sampled(
    maps: Sequence[Float[Tensor, "b heads d _h _w"]],
    at: Float[Tensor, "b n heads levels p 2"],
    weights: Float[Tensor, "b n heads levels p"],
) -> Float[Tensor, "b n heads*d"]:
    """Return the weighted sum of the samples of each head of a query from the maps of all levels (equation 3)."""
    mixed = at.new_zeros(())
    for values, places, shares in zip(maps, at.unbind(dim=3), weights.unbind(dim=3), strict=True):
        samples = sampled(
            rearrange(values, "b heads d h w -> (b heads) d h w"),
            rearrange(places, "b n heads p xy -> (b heads) n p xy"),
        )
        shares = rearrange(shares, "b n heads p -> (b heads) 1 n p")
        mixed = mixed + (samples * shares).sum(dim=-1)
    return rearrange(mixed, "(b heads) d n -> b n (heads d)", b=len(at))


def directions(heads: int, points: int) -> Float[Tensor, "heads p 2"]:
    """Return the initial offsets: each head's points in one direction, 1, 2, 3 ... cells away."""
    angles = torch.arange(heads) * (2 * math.pi / heads)
    towards = torch.stack([angles.cos(), angles.sin()], dim=-1)
    towards = towards / towards.abs().amax(dim=-1, keepdim=True)
    return towards[:, None] * torch.arange(1, points + 1)[:, None]


class Deformable(nn.Module):
    """Deformable attention over the frames of a grid, each at several scales.

    A token samples around its own cell in all frames. Its offsets grow linearly with the lag, as those of a steady
    motion do, so that they hold for any number of frames. Each scale has its own offsets and weights; all samples of a
    token share one softmax.
    """

    def __init__(self, dim: int, heads: int, *, points: int = 4, scales: int = 2) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads ({heads}), got {dim}")
        if min(points, scales) < 1:
            raise ValueError(f"points and scales must be at least 1, got {points} and {scales}")
        self.dim, self.heads, self.points, self.scales = dim, heads, points, scales
        self.start = nn.Linear(dim, heads * scales * points * 2)  # offset at lag 0
        self.motion = nn.Linear(dim, heads * scales * points * 2)  # how it changes with each step back
        self.weights = nn.Linear(dim, heads * scales * points)
        self.lags = nn.Linear(dim, heads * LAG_FEATURES, bias=False)
        self.value, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.coarser = nn.ModuleList(_Halved(dim) for _ in range(scales - 1))
        _start(self.start, directions(heads, points)[:, None].expand(-1, scales, -1, -1) / SLOW)
        for linear in (self.motion, self.weights, self.lags):
            _start(linear, None)
        _start_maps(self.value, self.out)

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, each token mixed from its samples; tokens that are not valid count as 0."""
        b, t, h, w, _ = grid.shape
        offsets, weights = self.look(grid)
        rows, columns = torch.meshgrid(*(torch.arange(n, device=grid.device) for n in (h, w)), indexing="ij")
        own = torch.stack([columns, rows], dim=-1).reshape(-1, 1, 1, 1, 1, 2)
        scale = 2 ** torch.arange(self.scales, device=grid.device)[:, None, None]
        maps = [values.to(offsets.dtype) for values in self._maps(grid, valid)]
        every = [[source] * t for source in range(t)]  # all frames look at all
        levels = [values[:, source].flatten(0, 1) for source in every for values in maps]
        at = rearrange(own / scale + offsets, "b t n m k s p xy -> (b t) n m (k s) p xy")
        weights = rearrange(weights, "b t n m k s p -> (b t) n m (k s) p")
        mixed = mix_sampled(levels, at, weights)
        out: Tensor = self.out(rearrange(mixed.to(grid.dtype), "(b t) (h w) d -> b t h w d", b=b, h=h))
        return out

    def look(
        self, grid: Grid
    ) -> tuple[Float[Tensor, "b t n heads lags scales p 2"], Float[Tensor, "b t n heads lags scales p"]]:
        """Return offsets (column, row), in cells of the scale, and weights of all samples of each token.

        Lags are those from frames 0, 1, 2 ... to the token's own.
        """
        steps = torch.arange(grid.shape[1], device=grid.device)
        lag = steps[:, None] - steps  # (t, source)
        exact = torch.promote_types(grid.dtype, torch.float32)
        parts = {"m": self.heads, "s": self.scales}
        start, motion = (
            rearrange(SLOW * linear(grid).to(exact), "b t h w (m s p xy) -> b t (h w) m 1 s p xy", xy=2, **parts)
            for linear in (self.start, self.motion)
        )
        offsets = start + motion * rearrange(lag, "t k -> t 1 1 k 1 1 1")
        logits = rearrange(self.weights(grid).to(exact), "b t h w (m s p) -> b t (h w) m 1 s p", **parts)
        features = rearrange(sines(lag.flatten().to(exact), LAG_FEATURES), "(t k) f -> t f k", t=len(lag))
        asked = rearrange(self.lags(grid).to(exact), "b t h w (m f) -> b t (h w m) f", m=self.heads)
        by_lag = rearrange(asked @ features, "b t (n m) k -> b t n m k 1 1", m=self.heads)
        logits = logits + by_lag
        return offsets, logits.flatten(-3).softmax(dim=-1).view_as(logits)

    def macs(self, t: int, h: int, w: int) -> int:
        """Return those of linear maps and convolutions; sampling only gathers and adds."""
        tokens, d = t * h * w, self.dim
        own = 5 * self.heads * self.scales * self.points + self.heads * LAG_FEATURES
        total = tokens * (2 * d**2 + own * d + self.heads * LAG_FEATURES * t)
        for scale in range(1, self.scales):
            total += t * _halved(h, scale) * _halved(w, scale) * 10 * d**2  # 3 x 3, and the value
        return total

    def held(self, t: int, h: int, w: int) -> int:
        """Return the number of samples, with their places and weights (written twice), and of maps for each lag."""
        samples = t * self.scales * self.points * t * h * w * (self.dim + 4 * self.heads)
        cells = sum(t * _halved(h, s) * _halved(w, s) for s in range(self.scales))
        return samples + t * cells * self.dim

    def _maps(self, grid: Grid, valid: Valid | None) -> list[Float[Tensor, "b t heads d_head _h _w"]]:
        b = len(grid)
        seen = torch.ones_like(grid[..., 0], dtype=torch.bool) if valid is None else valid
        tokens = rearrange(grid.masked_fill(~seen[..., None], 0.0), "b t h w d -> (b t) d h w")
        mask = rearrange(seen.to(grid.dtype), "b t h w -> (b t) 1 h w")
        maps = []
        for scale in range(self.scales):
            if scale:
                tokens, mask = self.coarser[scale - 1](tokens, mask)
            values = self.value(rearrange(tokens, "b_t d h w -> b_t h w d")) * rearrange(mask, "b_t 1 h w -> b_t h w 1")
            maps.append(rearrange(values, "(b t) h w (heads d) -> b t heads d h w", b=b, heads=self.heads).contiguous())
        return maps


class _Halved(nn.Module):
    """Maps at half the resolution: a 3 x 3 convolution with stride 2, then group norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(dim, dim, 3, stride=2)
        groups = math.gcd(32, dim)
        self.norm = nn.GroupNorm(groups if groups < dim else max(1, dim // 2), dim)  # never one number of its own

    def forward(
        self, maps: Float[Tensor, "g d h w"], mask: Float[Tensor, "g 1 h w"]
    ) -> tuple[Float[Tensor, "g d h_half w_half"], Float[Tensor, "g 1 h_half w_half"]]:
        """Return the coarser maps, and the mask of their cells with any valid cell below them."""
        maps, mask = (functional.pad(x, (1, 1, 1, 1)) for x in (maps, mask))
        return self.norm(self.convolution(maps)), functional.max_pool2d(mask, 3, stride=2)


def _halved(size: int, times: int) -> int:
    return math.ceil(size / (1 << times))


def _start(linear: nn.Linear, bias: Tensor | None) -> None:
    """Set the bias, or 0, and zero weights: no dependence on the query at first."""
    nn.init.zeros_(linear.weight)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
        if bias is not None:
            linear.bias.data.copy_(bias.flatten())


def _start_maps(*linears: nn.Linear) -> None:
    for linear in linears:
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
