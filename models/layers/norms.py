"""Norms of feature maps."""

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

Maps = Float[Tensor, "b c h w"]


class ChannelNorm(nn.LayerNorm):
    """Layer norm of the channels of each cell by itself."""

    def forward(self, maps: Maps) -> Maps:
        """Return maps with mean 0 and variance 1 over the channels of each cell, then scaled and shifted."""
        return rearrange(super().forward(rearrange(maps, "b c h w -> b h w c")), "b h w c -> b c h w")
