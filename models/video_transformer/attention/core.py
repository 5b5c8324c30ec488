"""Scaled dot-product and multi-head attention, of which every attention pattern is made.

Vaswani et al. 2017, "Attention Is All You Need", sections 3.2.1 and 3.2.2. A query that may attend to nothing gets 0.
"""

from collections.abc import Callable, Iterable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

Heads = Float[Tensor, "b heads n d"]
Allowed = Bool[Tensor, "#b #heads #n m"]  # True: this query may attend to this key
Weights = Float[Tensor, "b heads n m"]
Rotate = Callable[[Tensor], Tensor]  # queries or keys (b, heads, n, d) turned by their positions
Watcher = Callable[[Tensor], None]  # receives the weights of each call
SHORT = 256  # keys; explicit weights of more take memory that the fused kernel saves


def attend(
    query: Heads,
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m d_v"],
    *,
    allowed: Allowed | None = None,
) -> Float[Tensor, "b heads n d_v"]:
    """Return softmax(query key^T / sqrt(d)) value by torch's fused kernel, without holding the weights in memory."""
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=allowed)


def fused_is_slow(query: Heads, key: Float[Tensor, "b heads m d"]) -> bool:
    """Return whether explicit weights are faster: on short lines in bfloat16, torch's fused kernel for CPUs is slow."""
    return query.device.type == "cpu" and query.dtype == torch.bfloat16 and key.shape[-2] <= SHORT


def attend_explicitly(
    query: Heads,
    key: Float[Tensor, "b heads m d"],
    value: Float[Tensor, "b heads m d_v"],
    *,
    allowed: Allowed | None = None,
) -> tuple[Float[Tensor, "b heads n d_v"], Weights]:
    """Return the same with every step written out, and the weights, which sum to 1 over allowed keys.

    The softmax is taken in float32 at least; a query without any allowed key has weights 0.
    """
    logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if allowed is None:
        weights = _softmax(logits, value)
        return weights @ value, weights
    seeing = allowed.any(dim=-1, keepdim=True)  # other queries: weights of all keys, then 0, since 0 / 0 is NaN
    weights = _softmax(logits.masked_fill(~allowed & seeing, -torch.inf), value)
    return (weights @ value).masked_fill(~seeing, 0.0), weights.masked_fill(~seeing, 0.0)


def _softmax(logits: Weights, like: Float[Tensor, "*any"]) -> Weights:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(dim=-1).to(like.dtype)


def split_heads(tokens: Float[Tensor, "b n heads_d"], heads: int) -> Float[Tensor, "b {heads} n d"]:
    """Return features of all heads side by side with a dimension of heads."""
    return rearrange(tokens, "b n (heads d) -> b heads n d", heads=heads)


def join_heads(mixed: Heads) -> Float[Tensor, "b n heads*d"]:
    """Return the inverse of `split_heads`."""
    return rearrange(mixed, "b heads n d -> b n (heads d)")


class Attention(nn.Module):
    """Multi-head attention without a key bias, which softmax would cancel: 4 d^2 + 3 d weights.

    The kernel is fused (`sdpa`) unless `impl` is `eager`, a watcher reads the weights or `fused_is_slow`.
    """

    head_mask: Tensor | None

    def __init__(self, dim: int, heads: int, *, impl: str = "sdpa") -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be a multiple of heads ({heads}), got {dim}")
        if impl not in ("sdpa", "eager"):
            raise ValueError(f"impl must be sdpa or eager, got {impl!r}")
        self.heads, self.impl = heads, impl
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.watcher: Watcher | None = None
        self.register_buffer("head_mask", None, persistent=False)

    def forward(
        self,
        tokens: Float[Tensor, "b n d"],
        context: Float[Tensor, "b m d"] | None = None,
        *,
        allowed: Allowed | None = None,
        rotate: Rotate | None = None,
    ) -> Float[Tensor, "b n d"]:
        """Return every token's mix of the context's tokens, or of `tokens` themselves without a context."""
        query = split_heads(self.query(tokens), self.heads)
        key, value = self.keys_and_values(tokens if context is None else context, rotate)
        return self.mix(query if rotate is None else rotate(query), key, value, allowed=allowed)

    def keys_and_values(
        self, context: Float[Tensor, "b m d"], rotate: Rotate | None = None
    ) -> tuple[Float[Tensor, "b heads m d_head"], Float[Tensor, "b heads m d_head"]]:
        """Return keys and values of tokens, which may be kept for later queries."""
        key, value = split_heads(self.key(context), self.heads), split_heads(self.value(context), self.heads)
        return (key if rotate is None else rotate(key)), value

    def mix(
        self,
        query: Heads,
        key: Float[Tensor, "b heads m d"],
        value: Float[Tensor, "b heads m d"],
        *,
        allowed: Allowed | None = None,
    ) -> Float[Tensor, "b n d_out"]:
        """Return the attention of queries to keys, with all heads joined by the output map."""
        if self.impl == "sdpa" and self.watcher is None and not fused_is_slow(query, key):
            mixed = attend(query, key, value, allowed=allowed)
        else:
            mixed, weights = attend_explicitly(query, key, value, allowed=allowed)
            if self.watcher is not None:
                self.watcher(weights.detach())
        if self.head_mask is not None:
            mixed = mixed * self.head_mask[:, None, None].to(mixed.dtype)
        out: Tensor = self.out(join_heads(mixed))
        return out

    def set_head_mask(self, mask: Float[Tensor, " _heads"] | None) -> None:
        """Multiply the output of each head by a number: 0 silences it; None lifts the mask."""
        if mask is not None and mask.shape != (self.heads,):
            raise ValueError(f"head mask must have shape ({self.heads},), got {tuple(mask.shape)}")
        self.head_mask = mask

    def prune_heads(self, heads: Iterable[int]) -> None:
        """Remove heads for good: the linear maps shrink."""
        gone = set(heads)
        if not gone <= set(range(self.heads)) or len(gone) == self.heads:
            raise ValueError(f"heads to prune must be some, not all, of 0 to {self.heads - 1}, got {sorted(gone)}")
        kept = [head for head in range(self.heads) if head not in gone]
        width = self.query.out_features // self.heads
        rows = torch.cat([torch.arange(head * width, (head + 1) * width) for head in kept])
        for linear in (self.query, self.key, self.value):
            _keep(linear, rows, dim=0)
        _keep(self.out, rows, dim=1)
        self.heads = len(kept)
        if self.head_mask is not None:
            self.head_mask = self.head_mask[kept]


def _keep(linear: nn.Linear, rows: Tensor, *, dim: int) -> None:
    rows = rows.to(linear.weight.device)
    linear.weight = nn.Parameter(linear.weight.detach().index_select(dim, rows).clone())
    if dim == 0:
        linear.out_features = len(rows)
        if linear.bias is not None:
            linear.bias = nn.Parameter(linear.bias.detach()[rows].clone())
    else:
        linear.in_features = len(rows)


def projection_macs(tokens: int, dim: int) -> int:
    """Return the multiply-adds of the four linear maps of multi-head attention."""
    return 4 * tokens * dim**2


def score_macs(queries: int, keys: int, dim: int) -> int:
    """Return the multiply-adds of query key^T and of the weights' product with the values, all heads together."""
    return 2 * queries * keys * dim
