"""Members of a learned forecast: features that one encoding shares are decoded once for each.

A noise vector scales and shifts the normalised features, the same in every cell, so that members differ as whole fields
and tiles of a field agree: conditional layer norm, as AIFS-CRPS has it (Lang et al. 2024, arXiv:2412.15832).
"""

import torch
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.layers.outputs import OutputOptions

NOISE = 16  # numbers a member
SPREAD = 0.1  # standard deviation of the weights at first: members begin near one another, never equal


def noise_at(seconds: Int64[Tensor, " b"], members: int) -> Float[Tensor, "b m k"]:
    """Return standard normal noise that depends on each sample's init time in seconds alone."""
    draws = [torch.randn(members, NOISE, generator=torch.Generator().manual_seed(s)) for s in seconds.tolist()]
    return torch.stack(draws).to(seconds.device)


def members_apart(fields: Float[Tensor, "b_m t m_c h w"], options: OutputOptions) -> Float[Tensor, "b *m t c h w"]:
    """Return the readout's fields with a dimension for members: quantiles are channels, an ensemble samples."""
    if options.output == "quantiles":
        return rearrange(fields, "b t (m c) h w -> b m t c h w", m=options.members)
    if options.output == "ensemble":
        return rearrange(fields, "(b m) t c h w -> b m t c h w", m=options.members)
    return fields


class NoisyBlock(nn.Module):
    """x + MLP(LN(x) * (1 + scale(noise)) + shift(noise)) for each member; all but the modulation is shared."""

    def __init__(self, dim: int, members: int) -> None:
        super().__init__()
        self.members = members
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)  # the modulation has its own
        self.modulation = nn.Linear(NOISE, 2 * dim)
        self.up, self.down = nn.Linear(dim, dim), nn.Linear(dim, dim)
        nn.init.normal_(self.modulation.weight, std=SPREAD)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, features: Float[Tensor, "b t n d"], noise: Float[Tensor, "b m k"] | None
    ) -> Float[Tensor, "b_m t n d"]:
        """Return the features of all members, those of a sample one after the other; None draws new noise."""
        if noise is None:
            noise = torch.randn(len(features), self.members, NOISE, device=features.device)
        scale, shift = self.modulation(noise)[:, :, None, None].chunk(2, dim=-1)
        modulated = self.norm(features)[:, None] * (1 + scale) + shift
        decoded: Tensor = features[:, None] + self.down(functional.silu(self.up(modulated)))
        return decoded.flatten(0, 1)
