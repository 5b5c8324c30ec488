"""Decoding of all leads at once: one query for every lead and patch reads the encoded history."""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fieldcast.models.video_transformer.attention.decoder import DecoderLayer
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from fieldcast.models.video_transformer.attention.interface import Grid, flatten
from fieldcast.models.video_transformer.block import Branch
from fieldcast.models.video_transformer.options import VideoTransformerOptions

Positions = Float[Tensor, "t h w d"]


def flat_positions(positions: Positions | None) -> Float[Tensor, "1 n d"] | None:
    """Return positions of the tokens of a grid, in the order of `flatten`."""
    return None if positions is None else flatten(positions[None])


class QueryLayer(nn.Module):
    """Attention among queries along time, then space (or none), cross-attention to the history, MLP."""

    def __init__(self, options: VideoTransformerOptions) -> None:
        super().__init__()
        dim, heads = options.dim, options.heads
        along = "TS" if options.query_attention == "factorised" else ""
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in along)
        self.mixers = nn.ModuleList(AlongAxes(dim, heads, axes) for axes in along)
        self.thin = Branch(options.dropout, 0.0)
        hidden = round(options.mlp_ratio * dim)
        self.reader = DecoderLayer(dim, heads, hidden, self_attention=False, dropout=options.dropout)

    def forward(
        self,
        queries: Grid,
        memory: Float[Tensor, "b m d"],
        positions: Float[Tensor, "1 n d"] | None,
        memory_positions: Float[Tensor, "1 m d"] | None,
    ) -> Grid:
        """Return the queries after one layer."""
        for norm, mixer in zip(self.norms, self.mixers, strict=True):
            queries = queries + self.thin(mixer(norm(queries)))
        remembered = self.reader.remember(memory, memory_positions)
        read, _ = self.reader(flatten(queries), remembered, positions=positions)
        _, f, h, w, _ = queries.shape
        wiser: Grid = rearrange(read, "b (f h w) d -> b f h w d", f=f, h=h, w=w)
        return wiser


class QueryDecoder(nn.Module):
    """Layers of queries; positions enter the queries and keys of every cross-attention, never its values."""

    def __init__(self, options: VideoTransformerOptions) -> None:
        super().__init__()
        self.layers = nn.ModuleList(QueryLayer(options) for _ in range(options.decoder_layers))
        self.sparing = options.checkpoint_activations

    def forward(
        self,
        queries: Grid,
        memory: Float[Tensor, "b s h w d"],
        positions: Positions | None,
        memory_positions: Float[Tensor, "s h w d"] | None,
    ) -> list[Grid]:
        """Return the queries' frames, decoded from the encoded history, after each layer."""
        known = flatten(memory), flat_positions(positions), flat_positions(memory_positions)
        decoded = []
        for layer in self.layers:
            if self.sparing and torch.is_grad_enabled():
                queries = checkpoint(layer, queries, *known, use_reentrant=False)
            else:
                queries = layer(queries, *known)
            decoded.append(queries)
        return decoded
