"""A convolutional LSTM layer with peepholes of one weight per channel.

Shi et al. 2015, "Convolutional LSTM Network", equation 3: the input and forget gates look at the old cell state, the
output gate at the new one. Zero padding, zero initial state.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

State = tuple[Float[Tensor, "b d h w"], Float[Tensor, "b d h w"]]  # hidden H, cell C

FORGET_BIAS = 1.0  # Jozefowicz et al. 2015: remember at first


def cell_update(
    gates: Float[Tensor, "b 4d h w"], cell: Float[Tensor, "b d h w"], peephole: Float[Tensor, "3 d 1 1"]
) -> State:
    """The next (hidden, cell) from the convolved gates (input, forget, candidate, output) and the old cell state."""
    i, f, g, o = gates.chunk(4, dim=1)
    of_input, of_forget, of_output = peephole.unbind()
    i = torch.sigmoid(i + of_input * cell)
    f = torch.sigmoid(f + of_forget * cell)
    cell = f * cell + i * torch.tanh(g)
    o = torch.sigmoid(o + of_output * cell)  # the new cell state
    return o * torch.tanh(cell), cell


class ConvLSTMLayer(nn.Module):
    """One level: an input-to-state convolution (none for `channels_in` 0) and a state-to-state one."""

    def __init__(self, channels_in: int, hidden: int, kernel: int) -> None:
        super().__init__()
        if channels_in:
            self.input_to_state = nn.Conv2d(channels_in, 4 * hidden, kernel, padding="same", bias=False)
        self.state_to_state = nn.Conv2d(hidden, 4 * hidden, kernel, padding="same", bias=False)
        self.bias = nn.Parameter(torch.zeros(4 * hidden))
        self.peephole = nn.Parameter(torch.zeros(3, hidden, 1, 1))  # of the input, forget and output gates
        nn.init.constant_(self.bias[hidden : 2 * hidden], FORGET_BIAS)

    def forward(
        self, inputs: Float[Tensor, "t b c h w"] | None, state: State | None, steps: int
    ) -> tuple[Float[Tensor, "t b d h w"], State]:
        """Hidden states of all steps, and the last state; either of inputs and state may be absent (zero)."""
        driven = [None] * steps if inputs is None else self._from_inputs(inputs)
        hidden_states = []
        for gates in driven:
            state = self._step(gates, state)
            hidden_states.append(state[0])
        assert state is not None  # steps is at least 1
        return torch.stack(hidden_states), state

    def _from_inputs(self, inputs: Float[Tensor, "t b c h w"]) -> tuple[Float[Tensor, "b 4d h w"], ...]:
        """The inputs' share of the gates, and the bias, of each step: one convolution for all."""
        flat = rearrange(inputs, "t b c h w -> (t b) c h w").contiguous(memory_format=torch.channels_last)
        gates = functional.conv2d(flat, self.input_to_state.weight, self.bias, padding="same")
        return gates.chunk(len(inputs))

    def _step(self, driven: Float[Tensor, "b 4d h w"] | None, state: State | None) -> State:
        if state is None:
            assert driven is not None
            zero = torch.zeros_like(driven.chunk(4, dim=1)[0])
            return cell_update(driven, zero, self.peephole)  # a zero state needs no convolution
        hidden, cell = state
        bias = self.bias if driven is None else None
        gates = functional.conv2d(hidden, self.state_to_state.weight, bias, padding="same")
        return cell_update(gates if driven is None else gates + driven, cell, self.peephole)
