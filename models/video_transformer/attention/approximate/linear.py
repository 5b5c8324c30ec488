"""Linear attention: the softmax replaced by a product of positive features, so that keys are summed before queries ask.

Katharopoulos et al. 2020, "Transformers are RNNs", equations 4 to 7 and 9 to 12.
"""

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.approximate.mixing import mix_all, token_mask
from fieldcast.models.video_transformer.attention.core import Attention, Heads, projection_macs
from fieldcast.models.video_transformer.attention.interface import Grid, Valid, ValidTokens

Features = Float[Tensor, "b heads n m"]  # positive
EPSILON = 1e-6  # added to the sum of weights: a query without keys gets 0


def elu_features(heads: Float[Tensor, "*any d"]) -> Float[Tensor, "*any d"]:
    """Return elu(x) + 1: positive, and linear above 0."""
    return functional.elu(heads) + 1


def kernel_attention(query: Features, key: Features, value: Heads) -> Heads:
    """Return values weighted by query . key of positive features, in time and memory linear in the tokens."""
    summed: Float[Tensor, "b heads m d"] = key.transpose(-2, -1) @ value
    total: Float[Tensor, "b heads m 1"] = key.sum(dim=-2)[..., None]
    return (query @ summed) / (query @ total + EPSILON)


def kernel_macs(tokens: int, dim: int, heads: int, features: int) -> int:
    """Return the multiply-adds of `kernel_attention`: keys into sums, sums to queries, sums of weights."""
    return 2 * tokens * dim * features + tokens * heads * features


def kernel_held(tokens: int, dim: int, heads: int, features: int) -> int:
    """Return the number of values that `kernel_attention` holds: sums over keys, both sides of the division."""
    return dim * features + heads * features + tokens * dim + tokens * heads


class LinearAttention(nn.Module):
    """Every token's mix of all, weighted by features elu + 1 of queries and keys."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim = dim
        self.attention = Attention(dim, heads)

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, mixed over all its tokens."""
        return mix_all(self.attention, grid, valid, self._mix)

    def macs(self, t: int, h: int, w: int) -> int:
        """Return 4 N d^2 + 2 N d d_head + N d for N tokens."""
        tokens, heads = t * h * w, self.attention.heads
        return projection_macs(tokens, self.dim) + kernel_macs(tokens, self.dim, heads, self.dim // heads)

    def held(self, t: int, h: int, w: int) -> int:
        """Return the number of features of queries and keys, and of `kernel_attention`: linear in the tokens."""
        tokens, heads = t * h * w, self.attention.heads
        return 2 * tokens * self.dim + kernel_held(tokens, self.dim, heads, self.dim // heads)

    def _mix(self, query: Heads, key: Heads, value: Heads, valid: ValidTokens | None) -> Heads:
        features, mask = elu_features(key), token_mask(valid)
        if mask is not None:
            features = features.masked_fill(~mask, 0.0)
        return kernel_attention(elu_features(query), features, value)
