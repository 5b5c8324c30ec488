"""Attention to a few learned mixtures of all keys and values.

Wang et al. 2020, "Linformer: Self-Attention with Linear Complexity", equation 7. The mixtures belong to places of a
line of tokens; on a grid of another size they are stretched.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.approximate.mixing import mix_all, token_mask
from fieldcast.models.video_transformer.attention.core import Attention, Heads, attend, projection_macs, score_macs
from fieldcast.models.video_transformer.attention.interface import Grid, Valid, ValidTokens

Mixtures = Float[Tensor, "k n"]


def segment_means(count: int, tokens: int) -> Float[Tensor, "{count} {tokens}"]:
    """Return mixtures that are the means of `count` neighbouring parts of the line, as even as can be."""
    part = torch.arange(tokens) * count // tokens
    members = functional.one_hot(part, count).T.float()
    return members / members.sum(dim=1, keepdim=True)


def stretch(mixtures: Mixtures, tokens: int) -> Float[Tensor, "k {tokens}"]:
    """Return the mixtures over another number of tokens, by linear interpolation with scaled weights."""
    if mixtures.shape[1] == tokens:
        return mixtures
    stretched = functional.interpolate(mixtures[None], size=tokens, mode="linear")[0]
    return stretched * (mixtures.shape[1] / tokens)


def reachable(mixtures: Mixtures, valid: ValidTokens) -> Bool[Tensor, "b 1 1 k"]:
    """Return true for mixtures that have weight on any valid token."""
    return ((mixtures.detach().abs() @ valid.to(mixtures.dtype).T).T > 0)[:, None, None]


class Linformer(nn.Module):
    """Every token's mix of `keys` mixtures of all tokens, which start as the means of parts of the line.

    One pair of mixtures, of keys and of values, serves all heads. Tokens that are not valid add nothing to them.
    """

    def __init__(self, dim: int, heads: int, *, keys: int = 64, tokens: int = 1024) -> None:
        super().__init__()
        if not 1 <= keys <= tokens:
            raise ValueError(f"keys must be between 1 and tokens ({tokens}), got {keys}")
        self.dim, self.keys = dim, keys
        self.attention = Attention(dim, heads)
        self.mix_keys = nn.Parameter(segment_means(keys, tokens))
        self.mix_values = nn.Parameter(segment_means(keys, tokens))

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, mixed over all its tokens."""
        return mix_all(self.attention, grid, valid, self._mix)

    def macs(self, t: int, h: int, w: int) -> int:
        """Return 4 N d^2 + 4 N k d for N tokens and k keys: half of the second for mixing, half for attention."""
        tokens = t * h * w
        return projection_macs(tokens, self.dim) + 2 * score_macs(tokens, self.keys, self.dim)

    def held(self, t: int, h: int, w: int) -> int:
        """Return the number of mixed keys and values, and of stretched mixtures."""
        tokens = t * h * w
        stretched = 0 if tokens == self.mix_keys.shape[1] else 2 * self.keys * tokens
        return 2 * self.keys * self.dim + stretched

    def _mix(self, query: Heads, key: Heads, value: Heads, valid: ValidTokens | None) -> Heads:
        tokens, mask = key.shape[-2], token_mask(valid)
        of_keys, of_values = stretch(self.mix_keys, tokens), stretch(self.mix_values, tokens)
        allowed = None
        if valid is not None and mask is not None:
            key, value = key.masked_fill(~mask, 0.0), value.masked_fill(~mask, 0.0)
            allowed = reachable(of_keys, valid)
        return attend(query, of_keys @ key, of_values @ value, allowed=allowed)
