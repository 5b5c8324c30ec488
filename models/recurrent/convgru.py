"""A convolutional GRU cell whose reset gate acts after the convolution, as in torch and cuDNN.

Cho et al. 2014 (arXiv:1406.1078) with convolutions, as in Shi et al. 2017, "Deep Learning for Precipitation
Nowcasting", equation 1: the update gate is the share of the old state that is kept. Zero padding, zero initial state.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.recurrent.norms import make_norm
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.repeated import Repeated
from fieldcast.models.recurrent.unroll import Driven, State, convolved_steps

SLOPE = 0.2  # of the leaky ReLU below zero


def activated(candidate: Tensor, activation: str) -> Tensor:
    """Return the candidate state by the activation's name: tanh or leaky."""
    return torch.tanh(candidate) if activation == "tanh" else functional.leaky_relu(candidate, SLOPE)


class GatedUpdate(nn.Module):
    """The update of a GRU: a new state from its input's share, its old state's share and the old state itself."""

    def __init__(self, hidden: int, options: RecurrentOptions) -> None:
        super().__init__()
        self.hidden, self.activation = hidden, options.activation
        self.bias = nn.Parameter(torch.zeros(3 * hidden))  # of reset gate, update gate and candidate
        self.state_bias = nn.Parameter(torch.zeros(hidden, 1, 1))  # of the candidate, inside the reset gate
        self.gate_norm = make_norm(options.norm, 2 * hidden)
        self.candidate_norm = make_norm(options.norm, hidden)

    def forward(
        self,
        of_input: Float[Tensor, "b 3*{self.hidden} h w"] | None,
        of_state: Float[Tensor, "b 3*{self.hidden} h w"] | None,
        state: Float[Tensor, "b d h w"] | None,
    ) -> Float[Tensor, "b d h w"]:
        """Return (1 - update) * candidate + update * state; the input's share has the bias; either may be absent."""
        of_input = self.bias[:, None, None] if of_input is None else of_input
        gates_end = (2 * self.hidden,)
        gates, candidate = torch.tensor_split(of_input, gates_end, dim=-3)
        recalled: Tensor = self.state_bias
        if of_state is not None:
            of_gates, of_candidate = torch.tensor_split(of_state, gates_end, dim=1)
            gates, recalled = gates + of_gates, of_candidate + recalled
        gates = gates if self.gate_norm is None else self.gate_norm(gates)
        reset, update = torch.sigmoid(gates).chunk(2, dim=1)
        candidate = candidate + reset * recalled
        candidate = candidate if self.candidate_norm is None else self.candidate_norm(candidate)
        candidate = activated(candidate, self.activation)
        return candidate + update * (-candidate if state is None else state - candidate)


class ConvGRUCell(nn.Module):
    """A convolution of the input (none for `channels_in` 0) and one of the state; its state is (hidden,)."""

    def __init__(self, channels_in: int, hidden: int, options: RecurrentOptions) -> None:
        super().__init__()
        if channels_in:
            self.input_to_state = nn.Conv2d(channels_in, 3 * hidden, options.kernel, padding="same", bias=False)
        self.state_to_state = nn.Conv2d(hidden, 3 * hidden, options.state_side, padding="same", bias=False)
        self.update = GatedUpdate(hidden, options)

    def drive(self, inputs: Float[Tensor, "t b c h w"]) -> list[Driven]:
        """Return the inputs' share of gates and candidate, and the bias, of each step."""
        return [(share,) for share in convolved_steps(inputs, self.input_to_state.weight, self.update.bias)]

    def step(self, driven: Driven | None, state: State | None, convolve: Repeated) -> State:
        """Return the next (hidden,)."""
        of_input = None if driven is None else driven[0]
        if state is None:  # a zero state needs no convolution
            return (self.update(of_input, None, None),)
        return (self.update(of_input, convolve(state[0]), state[0]),)
