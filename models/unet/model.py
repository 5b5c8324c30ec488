"""U-Net: the frames of a history as channels, convolutions on grids ever coarser and back.

Ronneberger et al. 2015, "U-Net", as Ayzel et al. 2020 (RainNet) use it for rain, here for all leads at once. It reads
increments to the history's mixture. Channels are normalised in each cell by itself, so that a cell sees the same in a
tile as in the field.
"""

from itertools import pairwise

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.layers.blocks import Block
from fieldcast.models.layers.members import NoisyBlock, members_apart
from fieldcast.models.layers.missing import LinearBaseline, fill_and_mask
from fieldcast.models.layers.patches import crop, pad_to_multiple
from fieldcast.models.layers.sizes import Sizes
from fieldcast.models.unet.options import UNetOptions

Maps = Float[Tensor, "b d h w"]


class UNet(nn.Module):
    """Forecasts by convolution over stacked frames on several scales; untrained it is persistence."""

    def __init__(self, options: UNetOptions, sizes: Sizes) -> None:
        super().__init__()
        self.options, self.sizes = options, sizes
        widths = [options.channels * (level + 1) for level in range(options.levels + 1)]
        frames = sizes.history * (sizes.channels_in + 1)  # + 1: the valid mask
        self.enter = nn.Sequential(Block(frames, widths[0]), Block(widths[0], widths[0]))
        coarser = list(pairwise(widths))
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(fine, coarse, 2, 2), Block(coarse, coarse), Block(coarse, coarse))
            for fine, coarse in coarser
        )
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, 2, 2) for fine, coarse in reversed(coarser))
        self.joins = nn.ModuleList(Block(2 * fine, fine) for fine, _ in reversed(coarser))
        self.base = LinearBaseline(sizes.history, sizes.horizon, sizes.channels_out)
        self.members = options.members or 1 if options.output == "ensemble" else 1
        self.readout = nn.Conv2d(widths[0], sizes.horizon * options.values * sizes.channels_out, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)  # type: ignore[arg-type]
        self.noisy = NoisyBlock(widths[0], self.members) if options.output == "ensemble" else None

    def forward(
        self, history: Float[Tensor, "b t c_in h w"], noise: Float[Tensor, "b m k"] | None = None
    ) -> Float[Tensor, "b *m f c_out h w"]:
        """Return forecasts of the first c_out channels for all leads, in normalised values; NaN is a missing cell.

        There are members unless its output is point; an ensemble's `noise` is drawn where none is given. Raises
        ValueError when steps or channels are not those it was built for.
        """
        self.sizes.check(history.shape)
        height, width = history.shape[-2:]
        frames = pad_to_multiple(fill_and_mask(history), 2**self.options.levels)
        maps = self._scales(rearrange(frames, "b t c h w -> b (t c) h w"))
        flat = self.readout(maps if self.noisy is None else self._with_noise(maps, noise))
        fields = crop(rearrange(flat, "b (f c) h w -> b f c h w", f=self.sizes.horizon), height, width)
        forecast: Tensor = self.base(members_apart(fields, self.options), history)
        return forecast

    def _scales(self, frames: Maps) -> Maps:
        """Return maps at full resolution, after all coarser ones."""
        passed = [self.enter(frames.contiguous(memory_format=torch.channels_last))]
        for down in self.downs:
            passed.append(down(passed[-1]))
        maps: Tensor = functional.dropout2d(passed.pop(), self.options.dropout, self.training)
        for up, join in zip(self.ups, self.joins, strict=True):
            maps = join(torch.cat([up(maps), passed.pop()], dim=1))
        return maps

    def _with_noise(self, maps: Maps, noise: Float[Tensor, "b m k"] | None) -> Float[Tensor, "b_m d h w"]:
        assert self.noisy is not None
        height = maps.shape[-2]
        cells: Tensor = self.noisy(rearrange(maps, "b d h w -> b 1 (h w) d"), noise)
        return rearrange(cells, "b 1 (h w) d -> b d h w", h=height)
