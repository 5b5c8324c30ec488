"""Softmax attention estimated with positive random features, in time and memory linear in the tokens.

FAVOR+: Choromanski et al. 2021, "Rethinking Attention with Performers", lemma 1 and sections 2.3 and 2.4.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fieldcast.models.video_transformer.attention.approximate.linear import (
    Features,
    kernel_attention,
    kernel_held,
    kernel_macs,
)
from fieldcast.models.video_transformer.attention.approximate.mixing import mix_all, token_mask
from fieldcast.models.video_transformer.attention.core import Attention, Heads, projection_macs
from fieldcast.models.video_transformer.attention.interface import Grid, Valid, ValidTokens

FLOOR = 1e-6  # added to every feature: no query loses all of its keys to underflow


def orthogonal_directions(features: int, width: int, seed: int) -> Float[Tensor, "m d"]:
    """Return normal vectors, orthogonal within each block of `width`, of which fewer are needed."""
    generator = torch.Generator().manual_seed(seed)
    blocks = -(-features // width)
    turned, upper = torch.linalg.qr(torch.randn(blocks, width, width, generator=generator))
    turned = turned * upper.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # without it some directions are preferred
    lengths = torch.randn(features, width, generator=generator).norm(dim=-1)
    directions: Tensor = turned.flatten(0, 1)[:features] * lengths[:, None]
    return directions


def query_features(query: Heads, directions: Float[Tensor, "m d"]) -> Features:
    """Return exp(w x - |x|^2 / 2) over its largest value in each row, which cancels in the sum of weights."""
    exponent = _exponent(query, directions)
    return (exponent - exponent.detach().amax(dim=-1, keepdim=True)).exp() + FLOOR


def key_features(key: Heads, directions: Float[Tensor, "m d"], valid: ValidTokens | None = None) -> Features:
    """Return exp(w x - |x|^2 / 2) over its largest value among all valid keys of a head; 0 for the others."""
    exponent, mask = _exponent(key, directions), token_mask(valid)
    if mask is not None:
        exponent = exponent.masked_fill(~mask, torch.finfo(exponent.dtype).min)
    features = (exponent - exponent.detach().amax(dim=(-2, -1), keepdim=True)).exp() + FLOOR
    return features if mask is None else features.masked_fill(~mask, 0.0)


def _exponent(heads: Heads, directions: Float[Tensor, "m d"]) -> Features:
    """Return W x - |x|^2 / 2 of x = heads / d^(1/4), in float32 at least, since it becomes an exponent."""
    with torch.autocast(heads.device.type, enabled=False):
        scaled = heads.to(torch.promote_types(heads.dtype, torch.float32)) * heads.shape[-1] ** -0.25
        exponent: Tensor = scaled @ directions.to(scaled.dtype).T - scaled.square().sum(dim=-1, keepdim=True) / 2
    return exponent


class Performer(nn.Module):
    """Every token's mix of all, weighted by an estimate of exact attention's weights; its error falls as m^(-1/2).

    The random directions are drawn once, from `seed`, and saved with the weights; all heads share them.
    """

    directions: Tensor

    def __init__(self, dim: int, heads: int, *, features: int = 256, seed: int = 0) -> None:
        super().__init__()
        if features < 1:
            raise ValueError(f"features must be at least 1, got {features}")
        self.dim, self.features = dim, features
        self.attention = Attention(dim, heads)
        self.register_buffer("directions", orthogonal_directions(features, dim // heads, seed))

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, mixed over all its tokens."""
        return mix_all(self.attention, grid, valid, self._mix)

    def macs(self, t: int, h: int, w: int) -> int:
        """Return 4 N d^2 + 4 N d m + N heads m for N tokens and m features."""
        tokens = t * h * w
        made = 2 * tokens * self.dim * self.features
        used = kernel_macs(tokens, self.dim, self.attention.heads, self.features)
        return projection_macs(tokens, self.dim) + made + used

    def held(self, t: int, h: int, w: int) -> int:
        """Return the number of features with and without floor, scaled queries and keys, and `kernel_attention`'s."""
        tokens, heads = t * h * w, self.attention.heads
        made = 4 * tokens * heads * self.features + 2 * tokens * self.dim
        return made + kernel_held(tokens, self.dim, heads, self.features)

    def _mix(self, query: Heads, key: Heads, value: Heads, valid: ValidTokens | None) -> Heads:
        features = key_features(key, self.directions, valid)
        return kernel_attention(query_features(query, self.directions), features, value.to(features.dtype))
