"""Multi-head attention, and the directions in which it can run over space-time tokens."""

from collections.abc import Callable

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Tokens = Float[Tensor, "b t n d"]  # n positions of a frame, row by row
Attend = Callable[[Tensor], Tensor]  # (b, n, d) to the same


def along_time(attend: Attend, tokens: Tokens) -> Tokens:
    """Attention over the slots of each position."""
    mixed = attend(rearrange(tokens, "b t n d -> (b n) t d"))
    return rearrange(mixed, "(b n) t d -> b t n d", b=len(tokens))


def along_space(attend: Attend, tokens: Tokens) -> Tokens:
    """Attention over the positions of each slot."""
    mixed = attend(rearrange(tokens, "b t n d -> (b t) n d"))
    return rearrange(mixed, "(b t) n d -> b t n d", b=len(tokens))


def along_all(attend: Attend, tokens: Tokens) -> Tokens:
    """Attention over all tokens of a sample."""
    mixed = attend(rearrange(tokens, "b t n d -> b (t n) d"))
    return rearrange(mixed, "b (t n) d -> b t n d", t=tokens.shape[1])


ALONG = {"T": along_time, "S": along_space, "J": along_all}


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017) without a key bias, which softmax would cancel."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Every token's mix of all tokens."""
        q, k, v = (
            rearrange(linear(tokens), "b n (heads d) -> b heads n d", heads=self.heads)
            for linear in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.out(rearrange(mixed, "b heads n d -> b n (heads d)"))
        return out
