"""One level of a recurrent network over all steps: what needs no state is computed for all of them at once.

A state is a tuple of maps (b, d, h, w) or stacks of them; the first is the hidden state, which the next level reads.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from fieldcast.models.recurrent.repeated import Repeated

State = tuple[Tensor, ...]
Driven = tuple[Tensor, ...]  # what one step's input adds, before the state is known


@runtime_checkable
class Cell(Protocol):
    """Recurrent cell: an `nn.Module` built from (channels_in, hidden, options)."""

    state_to_state: nn.Conv2d

    def drive(self, inputs: Float[Tensor, "t b c h w"]) -> Sequence[Driven]:
        """Return each step's share of the input, by one convolution for all steps."""

    def step(self, driven: Driven | None, state: State | None, convolve: Repeated) -> State:
        """Return the next state; either of input and state, but not both, may be absent (zero).

        `convolve` is the convolution by `state_to_state`.
        """


@runtime_checkable
class AtOnce(Protocol):
    """A cell that may have one function for all steps."""

    def at_once(
        self, inputs: Float[Tensor, "t b c h w"] | None, state: State | None, steps: int
    ) -> tuple[Float[Tensor, "t b d h w"], State] | None:
        """Return the result of `unroll`, or None if the cell goes step by step."""


def unroll(
    cell: Cell, inputs: Float[Tensor, "t b c h w"] | None, state: State | None, steps: int
) -> tuple[Float[Tensor, "t b d h w"], State]:
    """Return hidden states of all steps, and the last state; either of inputs and state may be absent (zero)."""
    at_once = cell.at_once(inputs, state, steps) if isinstance(cell, AtOnce) else None
    if at_once is not None:
        return at_once
    driven: Sequence[Driven | None] = [None] * steps if inputs is None else cell.drive(inputs)
    convolve = Repeated(cell.state_to_state.weight)
    hidden_states = []
    for of_step in driven:
        state = cell.step(of_step, state, convolve)
        hidden_states.append(state[0])
    assert state is not None  # steps is at least 1
    return torch.stack(hidden_states), state


def all_steps(steps: Float[Tensor, "t b c h w"]) -> Float[Tensor, "t*b c h w"]:
    """Return all steps as one batch, channels last in memory, which convolutions on CPU and GPU prefer."""
    return rearrange(steps, "t b c h w -> (t b) c h w").contiguous(memory_format=torch.channels_last)


def convolved_steps(
    steps: Float[Tensor, "t b c h w"], weight: Float[Tensor, "d c k k"], bias: Float[Tensor, " d"] | None
) -> tuple[Float[Tensor, "b d h w"], ...]:
    """Return each step convolved, zeros beyond the edge: one convolution for all."""
    return functional.conv2d(all_steps(steps), weight, bias, padding="same").chunk(len(steps))
