"""A convolutional LSTM cell with peepholes of one weight per channel.

Shi et al. 2015, "Convolutional LSTM Network", equation 3: the input and forget gates look at the old cell state, the
output gate at the new one. Zero padding, zero initial state.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fieldcast.models.recurrent import level
from fieldcast.models.recurrent.gates import cell_update
from fieldcast.models.recurrent.norms import make_norm
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.repeated import Repeated
from fieldcast.models.recurrent.unroll import Driven, State, convolved_steps


class ConvLSTMCell(nn.Module):
    """A convolution of the input (none for `channels_in` 0) and one of the state; its state is (hidden, cell)."""

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
        """The inputs' share of the gates, and the bias, of each step."""
        return [(gates,) for gates in convolved_steps(inputs, self.input_to_state.weight, self.bias)]

    def at_once(
        self, inputs: Float[Tensor, "t b c h w"] | None, state: State | None, steps: int
    ) -> tuple[Float[Tensor, "t b d h w"], State] | None:
        """All steps by one function, where there is one for these."""
        hidden, cell = (None, None) if state is None else state
        of_input = self.input_to_state.weight if inputs is not None else None
        weights = level.Weights(of_input, self.state_to_state.weight, self.bias, self.peephole)
        if self.norm is not None or not level.suits(weights, inputs, hidden):
            return None
        return level.run(weights, inputs, hidden, cell, steps)

    def step(self, driven: Driven | None, state: State | None, convolve: Repeated) -> State:
        """The next (hidden, cell)."""
        gates = self._gates(driven, state, convolve)
        gates = gates if self.norm is None else self.norm(gates)
        return cell_update(gates, None if state is None else state[1], self.peephole)

    def _gates(self, driven: Driven | None, state: State | None, convolve: Repeated) -> Float[Tensor, "b 4d h w"]:
        if state is None:
            assert driven is not None
            return driven[0]  # a zero state needs no convolution
        gates = convolve(state[0], self.bias if driven is None else None)
        return gates if driven is None else gates + driven[0]
