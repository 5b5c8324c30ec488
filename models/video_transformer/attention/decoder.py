"""Decoder of an encoder-decoder: self-attention, cross-attention to a memory, MLP (Vaswani et al. 2017, section 3.1).

Keys and values of the memory are made once. Those of the decoder's own tokens can be kept too, so that tokens may come
all at once under a mask, or some at a time without one: the results are equal.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor, cat, nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.core import Allowed, Attention, split_heads
from fieldcast.models.video_transformer.attention.masks import both, only_valid

Tokens = Float[Tensor, "b n d"]
KeysAndValues = tuple[Float[Tensor, "b heads m d_head"], Float[Tensor, "b heads m d_head"]]
Earlier = tuple[Float[Tensor, "b heads k d_head"], Float[Tensor, "b heads k d_head"]]
All = tuple[Float[Tensor, "b heads k_m d_head"], Float[Tensor, "b heads k_m d_head"]]


def at(tokens: Tokens, positions: Float[Tensor, "#b n d"] | None) -> Tokens:
    """Return tokens with their positions added."""
    return tokens if positions is None else tokens + positions


def keys_and_values(attention: Attention, tokens: Tokens, positions: Float[Tensor, "#b n d"] | None) -> KeysAndValues:
    """Return keys with positions and values without (Carion et al. 2020, "End-to-End Object Detection", A.3)."""
    key, value = attention.key(at(tokens, positions)), attention.value(tokens)
    return split_heads(key, attention.heads), split_heads(value, attention.heads)


def queries(
    attention: Attention, tokens: Tokens, positions: Float[Tensor, "#b n d"] | None
) -> Float[Tensor, "b heads n d_head"]:
    """Return queries with positions."""
    return split_heads(attention.query(at(tokens, positions)), attention.heads)


def joined(earlier: Earlier | None, later: KeysAndValues) -> All:
    """Return keys and values of earlier tokens, if any, and later ones."""
    if earlier is None:
        return later
    return cat([earlier[0], later[0]], dim=2), cat([earlier[1], later[1]], dim=2)


@dataclass
class Cache:
    """Keys and values of each layer: of the memory, and of the decoder's own tokens up to now, valid or not."""

    memory: list[KeysAndValues]
    own: list[KeysAndValues | None]
    valid: Bool[Tensor, "b m"] | None = None


class DecoderLayer(nn.Module):
    """Three residual branches, each with its LayerNorm before it.

    Without `self_attention` tokens read the memory each for itself.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        self_attention: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.self_norm = nn.LayerNorm(dim) if self_attention else None
        self.self_attention = Attention(dim, heads) if self_attention else None
        self.cross_norm, self.cross_attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.up, self.down = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def remember(self, memory: Tokens, positions: Float[Tensor, "#b m d"] | None = None) -> KeysAndValues:
        """Return the keys and values of the memory for this layer's cross-attention."""
        return keys_and_values(self.cross_attention, memory, positions)

    def forward(
        self,
        tokens: Tokens,
        memory: KeysAndValues,
        *,
        own: Earlier | None = None,
        allowed: Bool[Tensor, "#b #heads #n k_m"] | None = None,
        positions: Float[Tensor, "#b n d"] | None = None,
    ) -> tuple[Tokens, All | None]:
        """Return the tokens, decoded, and the keys and values of `own`, earlier tokens, and these.

        `allowed` says which of them a token may attend to. All may read all of the memory.
        """
        if self.self_attention is not None and self.self_norm is not None:
            x = self.self_norm(tokens)
            own = joined(own, keys_and_values(self.self_attention, x, positions))
            mixed = self.self_attention.mix(queries(self.self_attention, x, positions), *own, allowed=allowed)
            tokens = tokens + self._thinned(mixed)
        x = self.cross_norm(tokens)
        mixed = self.cross_attention.mix(queries(self.cross_attention, x, positions), *memory)
        tokens = tokens + self._thinned(mixed)
        hidden = functional.gelu(self.up(self.mlp_norm(tokens)))
        return tokens + self._thinned(self.down(hidden)), own

    def _thinned(self, branch: Tokens) -> Tokens:
        return functional.dropout(branch, self.dropout, self.training)


class Decoder(nn.Module):
    """Decoder layers with pre-norm, and a LayerNorm after the last."""

    def __init__(self, dim: int, heads: int, hidden: int, layers: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(dim, heads, hidden, dropout=dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)

    def start(self, memory: Tokens, positions: Float[Tensor, "#b m d"] | None = None) -> Cache:
        """Return a cache of the memory's keys and values, without tokens yet."""
        return Cache([layer.remember(memory, positions) for layer in self._layers()], [None] * len(self.layers))

    def forward(
        self,
        tokens: Tokens,
        cache: Cache,
        *,
        valid: Bool[Tensor, "b n"] | None = None,
        allowed: Allowed | None = None,
        positions: Float[Tensor, "#b n d"] | None = None,
    ) -> Tokens:
        """Return the tokens, decoded; the cache keeps their keys and values for later ones.

        They attend to those that are `allowed` and `valid`, which is given in every call for a cache or in none.
        """
        if valid is not None:
            cache.valid = valid if cache.valid is None else cat([cache.valid, valid], dim=1)
            allowed = both(allowed, only_valid(cache.valid))
        for index, layer in enumerate(self._layers()):
            tokens, cache.own[index] = layer(
                tokens, cache.memory[index], own=cache.own[index], allowed=allowed, positions=positions
            )
        out: Tokens = self.norm(tokens)
        return out

    def _layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]
