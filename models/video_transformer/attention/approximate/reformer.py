"""Attention among tokens that a hash puts into one bucket, with queries that are keys as well.

Kitaev et al. 2020, "Reformer: The Efficient Transformer", section 2: angular hash, sorted buckets in chunks, several
rounds, no token attends to itself unless it is alone.
"""

from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.approximate.mixing import finish
from fieldcast.models.video_transformer.attention.core import Attention, Heads, score_macs, split_heads
from fieldcast.models.video_transformer.attention.interface import Grid, Valid, flatten, flatten_valid

Buckets = Int[Tensor, "b heads rounds n"]
Chunks = Shaped[Tensor, "b heads rounds c m d"]  # sorted tokens: m in each of c chunks
MOST_BUCKETS = 128
HIDDEN = MOST_BUCKETS  # bucket of tokens that nothing may attend to: sorted last
SELF = -1e5  # logit of a token with itself: it counts only where there is no other


def angular_buckets(points: Heads, rotations: Float[Tensor, "rounds d half"]) -> Buckets:
    """Return the nearest of the directions of random rotations and their opposites; one bucket without rotations."""
    if rotations.shape[-1] == 0:
        return torch.zeros_like(points[:, :, None, :, 0], dtype=torch.long).expand(-1, -1, len(rotations), -1)
    with torch.no_grad(), torch.autocast(points.device.type, enabled=False):
        rotated = points.to(rotations.dtype)[:, :, None] @ rotations
        return torch.cat([rotated, -rotated], dim=-1).argmax(dim=-1)


def attend_in_buckets(query: Heads, value: Heads, buckets: Buckets, *, chunk: int) -> Float[Tensor, "b heads n d"]:
    """Return each query's mix of the tokens of its bucket, over all rounds; keys are queries at unit length.

    Tokens are sorted by bucket and cut into chunks; a token sees its own chunk and the one before. Rounds are weighted
    by their sums of weights. Tokens of the bucket `HIDDEN` neither see nor are seen.
    """
    order = buckets.argsort(dim=-1, stable=True)
    place = _in_chunks(order, order, chunk)
    bucket = _in_chunks(buckets.gather(-1, order), order, chunk, fill=HIDDEN)
    asked, read = (_in_chunks(_take(heads, order), order, chunk) for heads in (query, value))
    logits = asked @ _and_previous(unit_length(asked)).transpose(-2, -1)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    logits = logits.masked_fill(place == _and_previous(place).transpose(-2, -1), SELF)
    seen = _and_previous(bucket, fill=HIDDEN).transpose(-2, -1)
    allowed = (bucket == seen) & (seen != HIDDEN)
    logits = logits.masked_fill(~allowed, torch.finfo(logits.dtype).min)
    weights = logits.softmax(dim=-1).masked_fill(~allowed, 0.0).to(value.dtype)
    mixed = weights @ _and_previous(read)
    return _over_rounds(mixed, logits.logsumexp(dim=-1, keepdim=True), order)


def unit_length(points: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
    """Return the points as directions; those at 0 stay there, with finite gradients."""
    return points * (points.square().sum(dim=-1, keepdim=True) + 1e-6 * points.shape[-1]).rsqrt()


def _take(heads: Heads, order: Buckets) -> Float[Tensor, "b heads rounds n d"]:
    rounds, width = order.shape[2], heads.shape[-1]
    several = heads[:, :, None].expand(-1, -1, rounds, -1, -1)
    return several.gather(3, order[..., None].expand(-1, -1, -1, -1, width))


def _in_chunks(tokens: Tensor, order: Buckets, chunk: int, *, fill: int = 0) -> Chunks:
    tokens = tokens[..., None] if tokens.dim() == order.dim() else tokens
    padded = functional.pad(tokens, (0, 0, 0, -tokens.shape[3] % chunk), value=fill)
    return rearrange(padded, "b heads rounds (c m) d -> b heads rounds c m d", m=chunk)


def _and_previous(chunks: Chunks, *, fill: int = 0) -> Shaped[Tensor, "b heads rounds c m_and_previous d"]:
    if chunks.shape[3] == 1:
        return chunks
    before = functional.pad(chunks[:, :, :, :-1], (0, 0, 0, 0, 1, 0), value=fill)
    return torch.cat([before, chunks], dim=-2)


def _over_rounds(mixed: Chunks, log_sum: Float[Tensor, "b heads rounds c m 1"], order: Buckets) -> Heads:
    back = order.argsort(dim=-1)[..., None]
    mixed, log_sum = (rearrange(x, "b heads rounds c m d -> b heads rounds (c m) d") for x in (mixed, log_sum))
    weights = log_sum.gather(3, back).softmax(dim=2).to(mixed.dtype)
    return (weights * mixed.gather(3, back.expand(*back.shape[:-1], mixed.shape[-1]))).sum(dim=2)


class Reformer(nn.Module):
    """Every token's mix of those that share a bucket and a chunk with it; of all, where they fill one chunk only.

    There are about two buckets a chunk. Queries are keys as well, so weights of exact attention load without their
    key map. Tokens that are not valid read nothing. Rotations are drawn once, from `seed`, and saved; all heads share
    them.
    """

    rotations: Tensor

    def __init__(self, dim: int, heads: int, *, chunk: int = 64, rounds: int = 2, seed: int = 0) -> None:
        super().__init__()
        if chunk < 1 or rounds < 1:
            raise ValueError(f"chunk and rounds must be at least 1, got {chunk} and {rounds}")
        self.dim, self.chunk, self.rounds = dim, chunk, rounds
        self.attention = Attention(dim, heads)
        del self.attention.key
        generator = torch.Generator().manual_seed(seed)
        rotations = torch.randn(rounds, dim // heads, MOST_BUCKETS // 2, generator=generator)
        self.register_buffer("rotations", rotations)
        self.register_load_state_dict_pre_hook(_drop_key_map)  # type: ignore[no-untyped-call]

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, mixed within buckets."""
        tokens, valid_tokens = flatten(grid), flatten_valid(valid)
        query = split_heads(self.attention.query(tokens), self.attention.heads)
        value = split_heads(self.attention.value(tokens), self.attention.heads)
        buckets = angular_buckets(query, self.rotations[..., : self._buckets(tokens.shape[1]) // 2])
        if valid_tokens is not None:
            buckets = buckets.masked_fill(~valid_tokens[:, None, None], HIDDEN)
        chunk = min(self.chunk, tokens.shape[1])
        return finish(self.attention, attend_in_buckets(query, value, buckets, chunk=chunk), grid)

    def macs(self, t: int, h: int, w: int) -> int:
        """Return 3 N d^2 + R (N d B / 2 + 4 N c d) for R rounds, B buckets, chunks of c, N in whole chunks."""
        tokens = t * h * w
        rows, columns = self._table(tokens)
        hashed = tokens * self.dim * (self._buckets(tokens) // 2)
        return 3 * tokens * self.dim**2 + self.rounds * (hashed + score_macs(rows, columns, self.dim))

    def held(self, t: int, h: int, w: int) -> int:
        """Return for each round the number of weights at three stages, and of sorted queries, keys and values.

        Keys and values are there twice: with those of the chunk before.
        """
        rows, columns = self._table(t * h * w)
        copies = 3 + 2 * columns // self.chunk
        return self.rounds * rows * (3 * self.attention.heads * columns + copies * self.dim)

    def _table(self, tokens: int) -> tuple[int, int]:
        chunks = -(-tokens // self.chunk)
        return (tokens, tokens) if chunks == 1 else (chunks * self.chunk, 2 * self.chunk)

    def _buckets(self, tokens: int) -> int:
        return 1 if tokens <= self.chunk else min(2 * -(-tokens // self.chunk), MOST_BUCKETS)


def _drop_key_map(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    state.pop(f"{prefix}attention.key.weight", None)
