"""ConvLSTM encoder-forecaster: reads the history into states, unrolls them over the leads.

Shi et al. 2015, "Convolutional LSTM Network", section 3.2: states of the encoder are copied to a forecaster whose first
layer has no input, and one 1x1 convolution reads all forecaster states. Here it reads increments to persistence; in an
ensemble it reads them once for each member, from states that the member's noise has modulated.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.convlstm.cell import ConvLSTMLayer, State
from models.convlstm.options import ConvLSTMOptions
from models.gaps import HistoryBase, fill_and_mask
from models.members import NoisyBlock, members_apart
from models.patches import crop, pad_to_multiple, patchify, unpatchify
from models.sizes import Sizes


class ConvLSTM(nn.Module):
    """Forecasts by convolutional recurrence on patches; untrained it is persistence."""

    def __init__(self, options: ConvLSTMOptions, sizes: Sizes) -> None:
        super().__init__()
        self.options, self.sizes = options, sizes
        area, hidden = options.patch**2, options.hidden
        inputs = ((sizes.channels_in + 1) * area, *hidden[:-1])  # + 1: the valid mask
        self.encoder = nn.ModuleList(
            ConvLSTMLayer(below, here, options.kernel) for below, here in zip(inputs, hidden, strict=True)
        )
        down = hidden[::-1]  # the forecaster starts from the deepest state, without input
        self.forecaster = nn.ModuleList(
            ConvLSTMLayer(above, here, options.kernel) for above, here in zip((0, *down[:-1]), down, strict=True)
        )
        self.base = HistoryBase(sizes.history, sizes.horizon, sizes.channels_out)
        self.readout = nn.Conv2d(sum(hidden), options.values * sizes.channels_out * area, 1)
        nn.init.zeros_(self.readout.weight)
        nn.init.zeros_(self.readout.bias)  # type: ignore[arg-type]
        self.noisy = NoisyBlock(sum(hidden), options.members or 1) if options.output == "ensemble" else None

    def forward(
        self, history: Float[Tensor, "b t c_in h w"], noise: Float[Tensor, "b m k"] | None = None
    ) -> Float[Tensor, "b *m f c_out h w"]:
        """Forecasts of the first c_out channels for all leads, in normalised values; NaN in the history is a gap.

        There are members unless its output is point; an ensemble's `noise` is drawn where none is given. Raises
        ValueError when steps or channels are not those it was built for.
        """
        self.sizes.check(history.shape)
        height, width = history.shape[-2:]
        patches = patchify(pad_to_multiple(fill_and_mask(history), self.options.patch), self.options.patch)
        states = self._encode(rearrange(patches, "b t c h w -> t b c h w"))
        increment = rearrange(self._read(self._forecast(states), noise), "t b c h w -> b t c h w")
        fields = crop(unpatchify(increment, self.options.patch), height, width)
        forecast: Tensor = self.base(members_apart(fields, self.options), history)
        return forecast

    def _encode(self, steps: Float[Tensor, "t b c h w"]) -> list[State]:
        states = []
        for level, layer in enumerate(self.encoder):
            steps = self._drop(steps) if level else steps
            steps, state = layer(steps, None, self.sizes.history)
            states.append(state)
        return states

    def _forecast(self, states: list[State]) -> Float[Tensor, "t b d h w"]:
        steps, _ = self.forecaster[0](None, states[-1], self.sizes.horizon)
        levels = [steps]
        for layer, state in zip(self.forecaster[1:], reversed(states[:-1]), strict=True):
            steps, _ = layer(self._drop(steps), state, self.sizes.horizon)
            levels.append(steps)
        return torch.cat(levels, dim=2)

    def _read(self, states: Float[Tensor, "t b d h w"], noise: Tensor | None) -> Float[Tensor, "t b_m c h w"]:
        states = self._drop(states)
        if self.noisy is not None:
            cells = self.noisy(rearrange(states, "t b d h w -> b t (h w) d"), noise)
            states = rearrange(cells, "b t (h w) d -> t b d h w", h=states.shape[-2])
        flat: Tensor = self.readout(rearrange(states, "t b d h w -> (t b) d h w"))
        return rearrange(flat, "(t b) c h w -> t b c h w", t=len(states))

    def _drop(self, steps: Float[Tensor, "t b d h w"]) -> Float[Tensor, "t b d h w"]:
        """Whole channels dropped, the same ones at every step of a sample."""
        if not self.training or self.options.dropout == 0:
            return steps
        keep: Tensor = functional.dropout(torch.ones_like(steps[:1, :, :, :1, :1]), self.options.dropout)
        return torch.mul(steps, keep)
