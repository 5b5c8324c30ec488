"""A few tokens beside the grid that see all of it and are seen by all of it: a memory, or a class token.

The global tokens of Longformer (Beltagy et al. 2020, section 3.1) and the global vectors of Earthformer (Gao et al.
2022, section 3.2), as a layer of their own beside any pattern of attention.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.video_transformer.attention.core import Attention, score_macs, split_heads
from fieldcast.models.video_transformer.attention.interface import AttentionPattern, Grid, Valid, flatten, flatten_valid

Globals = Float[Tensor, "b g d"]


class GlobalTokens(nn.Module):
    """A pattern of attention, and beside it `tokens` tokens, through which every token can reach every other.

    First the global tokens attend to each other and to the grid; then the grid attends to what they have become, or to
    a key of zeros, with which a token leaves them alone. That is added to what the pattern mixes.
    """

    def __init__(self, dim: int, heads: int, pattern: AttentionPattern, *, tokens: int = 8) -> None:
        super().__init__()
        if tokens < 1:
            raise ValueError(f"tokens must be at least 1, got {tokens}")
        self.dim = dim
        self.mixer = pattern  # in names of weights
        self.tokens = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.gather, self.spread = Attention(dim, heads), Attention(dim, heads)

    def forward(self, grid: Grid, valid: Valid | None = None) -> Grid:
        """Return the grid, mixed by the pattern and through this layer's global tokens."""
        mixed, _ = self.exchange(grid, torch.stack([self.tokens] * len(grid)), valid)
        return mixed

    def exchange(self, grid: Grid, tokens: Globals, valid: Valid | None = None) -> tuple[Grid, Globals]:
        """Return the grid and given global tokens, both mixed: residuals are the caller's."""
        line, line_valid = flatten(grid), flatten_valid(valid)
        allowed: Bool[Tensor, "b 1 1 n"] | None = None
        if line_valid is not None:
            allowed = functional.pad(line_valid, (tokens.shape[1], 0), value=True)[:, None, None]
        gathered: Globals = self.gather(tokens, torch.cat([tokens, line], dim=1), allowed=allowed)
        key, value = (functional.pad(x, (0, 0, 0, 1)) for x in self.spread.keys_and_values(gathered))
        read = self.spread.mix(split_heads(self.spread.query(line), self.spread.heads), key, value)
        _, t, h, w, _ = grid.shape
        return self.mixer(grid, valid) + rearrange(read, "b (t h w) d -> b t h w d", t=t, h=h, w=w), gathered

    def macs(self, t: int, h: int, w: int) -> int:
        """Return the pattern's, and 4 N d^2 + 6 G d^2 + 2 d (G (N + G) + N (G + 1)) for N tokens and G global ones.

        Each linear map on the N tokens and on the global ones costs d^2 a token.
        """
        n, g = t * h * w, len(self.tokens)
        maps = (4 * n + 6 * g) * self.dim**2
        return self.mixer.macs(t, h, w) + maps + score_macs(g, g + n, self.dim) + score_macs(n, g + 1, self.dim)

    def held(self, t: int, h: int, w: int) -> int:
        """Return the pattern's, and the line of all tokens."""
        return self.mixer.held(t, h, w) + (t * h * w + len(self.tokens)) * self.dim
