"""Convolutional LSTM with peepholes of one weight per channel.

Shi et al. 2015, "Convolutional LSTM Network", equation 3. Zero padding, zero initial state.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from fieldcast.models.recurrent.fast import level
from fieldcast.models.recurrent.norms import make_norm
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.repeated import Repeated
from fieldcast.models.recurrent.unroll import Driven, State, convolved_steps

Maps = Float[Tensor, "b d h w"]


def lstm_step(
    gates: Float[Tensor, "4 b d h w"], cell: Maps | None, peephole: Float[Tensor, "3 d 1 1"] | None
) -> tuple[Maps, Maps]:
    """Return the next hidden and cell state; None means zeros.

    `gates` are W_x * X_t + W_h * H_(t-1) + b for i, f, c and o. The hidden state has their precision; the cell state,
    which sums over many steps, has at least float32.
    """
    x_i, x_f, x_c, x_o = gates.to(torch.promote_types(gates.dtype, torch.float32))  # (b, d, h, w) each
    w_i, w_f, w_o = (0.0, 0.0, 0.0) if peephole is None else peephole  # (d, 1, 1)
    cell = torch.zeros_like(x_c) if cell is None else cell

    i = torch.sigmoid(x_i + w_i * cell)
    f = torch.sigmoid(x_f + w_f * cell)
    cell = f * cell + i * torch.tanh(x_c)
    o = torch.sigmoid(x_o + w_o * cell)
    hidden = o * torch.tanh(cell)

    return hidden.to(gates.dtype), cell


class ConvLSTMCell(nn.Module):
    """A convolution of the input (none for `channels_in` 0), one of the state, and `lstm_step`.

    Its state is (hidden, cell).
    """

    peephole: Tensor | None

    def __init__(self, channels_in: int, hidden: int, options: RecurrentOptions) -> None:
        super().__init__()
        if channels_in:
            self.input_to_state = nn.Conv2d(channels_in, 4 * hidden, options.kernel, padding="same", bias=False)
        self.state_to_state = nn.Conv2d(hidden, 4 * hidden, options.state_side, padding="same", bias=False)
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        peepholes = nn.Parameter(torch.zeros(3, hidden, 1, 1))  # of the input, forget and output gates
        self.register_parameter("peephole", peepholes if options.peephole == "channel" else None)
        self.norm = make_norm(options.norm, 4 * hidden)
        of_forget = (self.bias if self.norm is None else self.norm.bias)[hidden : 2 * hidden]
        nn.init.constant_(of_forget, options.forget_bias)

    def drive(self, inputs: Float[Tensor, "t b c h w"]) -> list[Driven]:
        """Return W_x * X_t + b of each step."""
        return [(gates,) for gates in convolved_steps(inputs, self.input_to_state.weight, self.bias)]

    def step(self, driven: Driven | None, state: State | None, convolve: Repeated) -> State:
        """Return the next (hidden, cell)."""
        gates = self._gates(driven, state, convolve)
        gates = gates if self.norm is None else self.norm(gates)
        gates = rearrange(gates, "b (four d) h w -> four b d h w", four=4)
        return lstm_step(gates, None if state is None else state[1], self.peephole)

    def at_once(
        self, inputs: Float[Tensor, "t b c h w"] | None, state: State | None, steps: int
    ) -> tuple[Float[Tensor, "t b d h w"], State] | None:
        """Return the same as `step` after `step` by the fast path, the one place that chooses it; None outside it."""
        if self.norm is not None:
            return None
        of_input = None if inputs is None else self.input_to_state.weight
        weights = level.Weights(of_input, self.state_to_state.weight, self.bias, self.peephole)
        return level.run(weights, inputs, state, steps)

    def _gates(self, driven: Driven | None, state: State | None, convolve: Repeated) -> Float[Tensor, "b d4 h w"]:
        if state is None:
            assert driven is not None
            return driven[0]  # a zero state needs no convolution
        gates = convolve(state[0], self.bias if driven is None else None)
        return gates if driven is None else gates + driven[0]
