"""Blocks of convolutions that several models are made of."""

from torch import nn

from fieldcast.models.layers.norms import ChannelNorm


class Block(nn.Sequential):
    """A convolution that overlaps its neighbours, channels normalised in each cell, SiLU; `stride` makes it coarser."""

    def __init__(self, channels_in: int, channels: int, stride: int = 1) -> None:
        side = max(3, 2 * stride - 1)
        convolution = nn.Conv2d(channels_in, channels, side, stride, padding=side // 2)
        super().__init__(convolution, ChannelNorm(channels), nn.SiLU())
