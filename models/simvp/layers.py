"""The pieces of the convolutional model: norm of channels, a frame's encoder and decoder, the gated block.

All of them work on a neighbourhood, none on statistics of the whole field: what a cell sees is bounded, and the same in
a tile as in the field.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.layers.blocks import Block
from fieldcast.models.layers.norms import ChannelNorm
from fieldcast.models.layers.patches import unpatchify

Maps = Float[Tensor, "b c h w"]

FAR, APART = 7, 3  # side of the far convolution, and cells between its points (Guo et al. 2022)


class Encoder(nn.Module):
    """One frame's maps at full resolution, and after `levels` halvings."""

    def __init__(self, channels_in: int, channels: int, levels: int) -> None:
        super().__init__()
        self.first = Block(channels_in, channels)
        self.down = nn.Sequential(*(Block(channels, channels, stride=2) for _ in range(levels)))

    def forward(self, frames: Maps) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d h_coarse w_coarse"]]:
        """Return fine maps, and coarse ones whose sides are those of the frames by 2 ** levels."""
        fine = self.first(frames)
        return fine, self.down(fine)


class Decoder(nn.Module):
    """All leads' coarse maps to full resolution, joined there with the fine maps of one frame.

    The convolution after the joining is taken apart: the frame's share is the same for all leads, and computed once.
    """

    def __init__(self, channels: int, levels: int) -> None:
        super().__init__()
        self.up = nn.ModuleList(nn.Conv2d(channels, 4 * channels, 3, padding=1) for _ in range(levels))
        self.norms = nn.ModuleList(ChannelNorm(channels) for _ in range(levels))
        self.of_lead = nn.Conv2d(channels, channels, 3, padding=1)
        self.of_frame = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(
        self, coarse: Float[Tensor, "b f d h_coarse w_coarse"], fine: Float[Tensor, "b d h w"]
    ) -> Float[Tensor, "b f d h w"]:
        """Return maps at the resolution of `fine`; each level turns channels into squares."""
        maps = rearrange(coarse, "b f d h w -> (b f) d h w")
        for up, norm in zip(self.up, self.norms, strict=True):
            maps = functional.silu(norm(unpatchify(up(maps), 2)))
        of_leads = rearrange(self.of_lead(maps), "(b f) d h w -> b f d h w", b=len(fine))
        return functional.silu(of_leads + self.of_frame(fine)[:, None])


class GatedMixing(nn.Module):
    """Values times a gate, both read from a wide neighbourhood: large-kernel attention with a gate of its own.

    The neighbourhood comes from a depth-wise convolution and a dilated one after it (Guo et al. 2022, "Visual Attention
    Network"; Tan et al. 2023, "Temporal Attention Unit"), at a small part of the weights of one dense convolution.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, channels, 1)
        self.near = nn.Conv2d(channels, channels, kernel, padding="same", groups=channels)
        self.far = nn.Conv2d(channels, channels, FAR, padding="same", dilation=APART, groups=channels)
        self.split = nn.Conv2d(channels, 2 * channels, 1)
        self.leave = nn.Conv2d(channels, channels, 1)

    def forward(self, maps: Maps) -> Maps:
        """Return the gated values of every cell."""
        values, gate = self.split(self.far(self.near(functional.gelu(self.enter(maps))))).chunk(2, dim=1)
        out: Tensor = self.leave(values * torch.sigmoid(gate))
        return out


class GatedBlock(nn.Module):
    """x + mixing(norm x), then x + MLP(norm x), the MLP with a depth-wise convolution between its two maps."""

    def __init__(self, channels: int, kernel: int, mlp_ratio: float, dropout: float) -> None:
        super().__init__()
        inner = round(mlp_ratio * channels)
        self.dropout = dropout
        self.mixing_norm, self.mixing = ChannelNorm(channels), GatedMixing(channels, kernel)
        self.mlp_norm = ChannelNorm(channels)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, inner, 1),
            nn.Conv2d(inner, inner, 3, padding=1, groups=inner),
            nn.GELU(),
            nn.Conv2d(inner, channels, 1),
        )

    def forward(self, maps: Maps) -> Maps:
        """Return maps of the same shape; whole channels of a branch are dropped in training."""
        maps = maps + functional.dropout2d(self.mixing(self.mixing_norm(maps)), self.dropout, self.training)
        return maps + functional.dropout2d(self.mlp(self.mlp_norm(maps)), self.dropout, self.training)
