"""All tokens of a sample as one line of queries, keys and values: what the approximations of attention start from.

A mix that replaces softmax(query key^T) value is all that an approximation adds; the linear maps are those of exact
attention, so that trained weights of one fit the other.
"""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from fieldcast.models.video_transformer.attention.core import Attention, Heads, join_heads, split_heads
from fieldcast.models.video_transformer.attention.mixer import Grid, Valid

ValidTokens = Bool[Tensor, "b n"]
Mix = Callable[[Heads, Heads, Heads, ValidTokens | None], Heads]  # queries, keys and values to mixed values


def flatten(grid: Grid) -> Float[Tensor, "b n d"]:
    """The tokens of each sample, frame by frame, row by row."""
    return rearrange(grid, "b t h w d -> b (t h w) d")


def flatten_valid(valid: Valid | None) -> ValidTokens | None:
    """The mask of `flatten`'s tokens, where there is one."""
    return None if valid is None else rearrange(valid, "b t h w -> b (t h w)")


def mix_all(attention: Attention, grid: Grid, valid: Valid | None, mix: Mix) -> Grid:
    """The grid mixed by `mix` between the linear maps of `attention`."""
    tokens = flatten(grid)
    query = split_heads(attention.query(tokens), attention.heads)
    key, value = attention.keys_and_values(tokens)
    return finish(attention, mix(query, key, value, flatten_valid(valid)), grid)


def finish(attention: Attention, mixed: Heads, grid: Grid) -> Grid:
    """What the heads mixed, silenced by the head mask, through the output map, in the shape of the grid."""
    if attention.head_mask is not None:
        mixed = mixed * attention.head_mask[:, None, None].to(mixed.dtype)
    out: Tensor = attention.out(join_heads(mixed))
    _, t, h, w, _ = grid.shape
    return rearrange(out, "b (t h w) d -> b t h w d", t=t, h=h, w=w)


def token_mask(valid: ValidTokens | None) -> Bool[Tensor, "b 1 n 1"] | None:
    """The mask as a column beside keys or values of all heads."""
    return None if valid is None else valid[:, None, :, None]
