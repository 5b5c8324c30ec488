"""Recurrent encoder-forecaster: reads the history into states, unrolls them over the leads.

Shi et al. 2015, "Convolutional LSTM Network", section 3.2: states of the encoder are copied to a forecaster whose first
layer has no input, and one 1x1 convolution reads all forecaster states. Here it reads increments to persistence; in an
ensemble it reads them once for each member, from states that the member's noise has modulated. With strides, as in Shi
et al. 2017, "Deep Learning for Precipitation Nowcasting", deeper levels work on coarser grids and the finest is read.
"""

import math
from typing import cast

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.layers.members import NoisyBlock, members_apart
from fieldcast.models.layers.missing import LinearBaseline, fill_and_mask
from fieldcast.models.layers.patches import crop, pad_to_multiple, patchify, unpatchify
from fieldcast.models.layers.sizes import Sizes
from fieldcast.models.recurrent.attention import AttentionCell
from fieldcast.models.recurrent.convgru import ConvGRUCell
from fieldcast.models.recurrent.convlstm import ConvLSTMCell
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.scales import Down, Up
from fieldcast.models.recurrent.trajgru import TrajGRUCell
from fieldcast.models.recurrent.unroll import Cell, State, unroll

CELLS = {"convlstm": ConvLSTMCell, "convgru": ConvGRUCell, "trajgru": TrajGRUCell, "attention": AttentionCell}


class Recurrent(nn.Module):
    """Forecasts by convolutional recurrence on patches; untrained it is persistence."""

    def __init__(self, options: RecurrentOptions, sizes: Sizes) -> None:
        super().__init__()
        self.options, self.sizes = options, sizes
        area, hidden = options.patch**2, options.hidden
        make = CELLS[options.cell]
        frame = (sizes.channels_in + 1) * area  # + 1: the valid mask
        inputs = (frame, *hidden[:-1]) if options.strides is None else (options.stem, *hidden[:-1])
        self.encoder = nn.ModuleList(make(below, here, options) for below, here in zip(inputs, hidden, strict=True))
        down = hidden[::-1]  # the forecaster starts from the deepest state, without input
        self.forecaster = nn.ModuleList(
            make(above, here, options) for above, here in zip((0, *down[:-1]), down, strict=True)
        )
        self.base = LinearBaseline(sizes.history, sizes.horizon, sizes.channels_out)
        read = sum(hidden) if options.strides is None else options.stem
        self.readout = nn.Conv2d(read, options.values * sizes.channels_out * area, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)  # type: ignore[arg-type]
        self.noisy = NoisyBlock(read, options.members or 1) if options.output == "ensemble" else None
        self.downs, self.ups = _scales(options, frame)

    def forward(
        self, history: Float[Tensor, "b t c_in h w"], noise: Float[Tensor, "b m k"] | None = None
    ) -> Float[Tensor, "b *m f c_out h w"]:
        """Return forecasts of the first c_out channels for all leads, in normalised values; NaN is a missing cell.

        There are members unless its output is point; an ensemble's `noise` is drawn where none is given. Raises
        ValueError when steps or channels are not those it was built for.
        """
        self.sizes.check(history.shape)
        height, width = history.shape[-2:]
        multiple = self.options.patch * math.prod(self.options.strides or ())
        patches = patchify(pad_to_multiple(fill_and_mask(history), multiple), self.options.patch)
        states = self._encode(rearrange(patches, "b t c h w -> t b c h w"))
        increment = rearrange(self._read(self._forecast(states), noise), "t b c h w -> b t c h w")
        fields = crop(unpatchify(increment, self.options.patch), height, width)
        forecast: Tensor = self.base(members_apart(fields, self.options), history)
        return forecast

    def _encode(self, steps: Float[Tensor, "t b c h w"]) -> list[State]:
        states = []
        for level, (down, cell) in enumerate(zip(self.downs, self.encoder, strict=True)):
            steps = self._drop(steps) if level else steps
            steps, state = unroll(cast(Cell, cell), down(steps), None, self.sizes.history)
            states.append(state)
        return states

    def _forecast(self, states: list[State]) -> Float[Tensor, "t b d h w"]:
        steps: Tensor | None = None
        levels = []
        for cell, up, state in zip(self.forecaster, self.ups, reversed(states), strict=True):
            steps = None if steps is None else self._drop(steps)
            hidden, _ = unroll(cast(Cell, cell), steps, state, self.sizes.horizon)
            steps = up(hidden)
            levels.append(steps)
        return torch.cat(levels, dim=2) if self.options.strides is None else levels[-1]

    def _read(self, states: Float[Tensor, "t b d h w"], noise: Tensor | None) -> Float[Tensor, "t b_m c h w"]:
        states = self._drop(states)
        if self.noisy is not None:
            cells = self.noisy(rearrange(states, "t b d h w -> b t (h w) d"), noise)
            states = rearrange(cells, "b t (h w) d -> t b d h w", h=states.shape[-2])
        kernel = rearrange(self.readout.weight, "c d 1 1 -> c d")
        # a matrix product: channels are last in memory, and oneDNN's 1x1 convolution would bring them to the front
        cells = functional.linear(rearrange(states, "t b d h w -> t b h w d"), kernel, self.readout.bias)
        return rearrange(cells, "t b h w c -> t b c h w")

    def _drop(self, steps: Float[Tensor, "t b d h w"]) -> Float[Tensor, "t b d h w"]:
        """Return the steps with whole channels dropped, the same ones at every step of a sample."""
        if not self.training or self.options.dropout == 0:
            return steps
        keep: Tensor = functional.dropout(torch.ones_like(steps[:1, :, :, :1, :1]), self.options.dropout)
        return torch.mul(steps, keep)


def _scales(options: RecurrentOptions, frame: int) -> tuple[nn.ModuleList, nn.ModuleList]:
    """Return the layers before each level of the encoder and after each of the forecaster, the deepest first."""
    hidden, strides = options.hidden, options.strides
    if strides is None:
        return nn.ModuleList(nn.Identity() for _ in hidden), nn.ModuleList(nn.Identity() for _ in hidden)
    stems = (options.stem, *hidden[:-1])
    downs = [Down(below, here, s) for below, here, s in zip((frame, *hidden[:-1]), stems, strides, strict=True)]
    finer = (options.stem, *hidden[1:])
    ups = [Up(here, up, s) for here, up, s in zip(hidden, finer, strides, strict=True)]
    return nn.ModuleList(downs), nn.ModuleList(ups[::-1])
