"""All tokens of a sample as one line of queries, keys and values, the common frame of the approximations.

An approximation only replaces softmax(query key^T) value. Its linear maps are those of exact attention, so that trained
weights of one fit the other.
"""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from fieldcast.models.video_transformer.attention.core import Attention, Heads, join_heads, split_heads
from fieldcast.models.video_transformer.attention.interface import Grid, Valid, ValidTokens, flatten, flatten_valid

Mix = Callable[[Heads, Heads, Heads, ValidTokens | None], Heads]  # queries, keys and values to mixed values


def mix_all(attention: Attention, grid: Grid, valid: Valid | None, mix: Mix) -> Grid:
    """Return the grid mixed by `mix` between the linear maps of `attention`."""
    tokens = flatten(grid)
    query = split_heads(attention.query(tokens), attention.heads)
    key, value = attention.keys_and_values(tokens)
    return finish(attention, mix(query, key, value, flatten_valid(valid)), grid)


def finish(attention: Attention, mixed: Float[Tensor, "b heads n d_head"], grid: Grid) -> Grid:
    """Return mixed heads, after the head mask and the output map, in the shape of the grid."""
    if attention.head_mask is not None:
        mixed = mixed * attention.head_mask[:, None, None].to(mixed.dtype)
    out: Tensor = attention.out(join_heads(mixed))
    _, t, h, w, _ = grid.shape
    return rearrange(out, "b (t h w) d -> b t h w d", t=t, h=h, w=w)


def token_mask(valid: ValidTokens | None) -> Bool[Tensor, "b 1 n 1"] | None:
    """Return the mask as a column beside keys or values of all heads."""
    return None if valid is None else valid[:, None, :, None]
