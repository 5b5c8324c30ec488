"""All steps of one ConvLSTM level as one function, forward and backward, for CPUs in single precision.

The sums are those of `convlstm.ConvLSTMCell` step by step. One convolution takes the channels of input and state side
by side, by fewer multiplications (`winograd`); the gradient of its kernel adds up in place, without autograd between.
In `_Level` maps have channels last, and gates are four maps, each contiguous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from fieldcast.models.recurrent.fast.gates import Step, act
from fieldcast.models.recurrent.fast.winograd import (
    POINTS,
    Grid,
    Kernel,
    channels_first,
    channels_last,
    of_kernel,
    transformed,
)

CHANNELS = 16  # of the state; with fewer, transforms cost more than the products that they save
TILES = 8  # of a sample; with fewer, likewise
AT_ONCE = 128  # tiles: with fewer, kernels are read too often; with more, products leave the processor's cache

Steps = Float[Tensor, "t b c h w"]
Maps = Float[Tensor, "b d h w"]
Tiles = Float[Tensor, "n_n tiles c"]


@dataclass(frozen=True)
class Weights:
    """Weights of a level; the kernel of the input is absent without inputs."""

    of_input: Float[Tensor, "d4 c k k"] | None
    of_state: Float[Tensor, "d4 d k_state k_state"]
    bias: Float[Tensor, " d4"]
    peephole: Float[Tensor, "3 d 1 1"] | None


def run(
    weights: Weights, inputs: Steps | None, state: tuple[Tensor, ...] | None, steps: int
) -> tuple[Float[Tensor, "t b d h w"], tuple[Maps, Maps]] | None:
    """Return the hidden states of all steps and the last (hidden, cell), or None outside the fast path.

    Inputs or state, but not both, may be absent (zero). Takes as many samples at a time as the processor's cache holds.
    """
    hidden, cell = (None, None) if state is None else state
    maps = hidden if inputs is None else inputs[0]
    assert maps is not None  # inputs or state
    if not _suits(weights, maps):
        return None
    kernel = transformed(*([] if weights.of_input is None else [weights.of_input]), weights.of_state)
    size = max(1, AT_ONCE // Grid(*maps.shape[-2:]).tiles)
    count = -(-len(maps) // size)
    samples = zip(*(_split(x, size, count) for x in (inputs, hidden, cell)), strict=True)
    rest = kernel, weights.bias, weights.peephole, steps, torch.is_grad_enabled()
    results = [_Level.apply(*of_samples, *rest) for of_samples in samples]  # type: ignore[no-untyped-call]
    states, last_hidden, last_cell = (
        results[0] if count == 1 else (torch.cat(x, dim=-4) for x in zip(*results, strict=True))
    )
    return states, (last_hidden, last_cell)


def _suits(weights: Weights, maps: Maps) -> bool:
    """Return True on a CPU in single precision with kernels of one side, 3 or 5, and enough channels and tiles."""
    if maps.device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    if is_in_torch_dispatch_mode() and type(maps) is Tensor:  # operations are counted: show those of the definition
        return False
    kernels = [kernel for kernel in (weights.of_input, weights.of_state) if kernel is not None]
    return (
        all(values.dtype == torch.float32 for values in (maps, *kernels))
        and {kernel.shape[-1] for kernel in kernels} in ({side} for side in POINTS)
        and weights.of_state.shape[1] >= CHANNELS
        and Grid(*maps.shape[-2:]).tiles >= TILES
    )


def _split(maps: Tensor | None, size: int, count: int) -> Sequence[Tensor | None]:
    return [None] * count if maps is None else torch.split(maps, size, dim=-4)


class _Level(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs: Steps | None, hidden: Maps | None, cell: Maps | None, kernel: Kernel,
        bias: Tensor, peephole: Tensor | None, steps: int, keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        transform, per_gate = of_kernel(kernel), None if peephole is None else peephole.flatten(1)
        grid = Grid(*(hidden if inputs is None else inputs).shape[-2:])  # type: ignore[union-attr]
        state, first_cell = (None if maps is None else channels_last(maps) for maps in (hidden, cell))
        states, new, kept, products = [], first_cell, [], None
        for step in range(steps):
            joint = [channels_last(inputs[step])] if inputs is not None else []
            tiles = transform.tiles(torch.cat(joint if state is None else [*joint, state], dim=3), grid)
            products = torch.bmm(tiles, kernel[:, : tiles.shape[2]], out=products)
            products[0] += bias  # see `Transform`
            gates = transform.results(products, grid, 4)
            state, new, tanh_new = act(gates.unbind(), new, per_gate)
            states.append(state)
            kept += [tiles, gates, new, tanh_new] if keep else []
        assert new is not None  # there is a step
        ctx.grid, ctx.channels_in, ctx.has_state = grid, 0 if inputs is None else inputs.shape[2], cell is not None
        ctx.save_for_backward(kernel, peephole, first_cell, *kept)
        return torch.stack(states).permute(0, 1, 4, 2, 3), channels_first(states[-1]), channels_first(new)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_states: Tensor | None, of_hidden: Tensor | None, of_cell: Tensor | None) -> Any:
        kernel, peephole, first_cell, *kept = ctx.saved_tensors
        steps = [kept[at : at + 4] for at in range(0, len(kept), 4)]
        cells_before = [first_cell, *(new for _, _, new, _ in steps)]
        total = _Gradients(kernel, peephole, ctx.channels_in if not ctx.needs_input_grad[0] else 0)
        of_hidden, of_cell = (None if maps is None else channels_last(maps) for maps in (of_hidden, of_cell))
        of_inputs = []
        for number, (tiles, gates, new, tanh_new) in reversed(list(enumerate(steps))):
            of_hidden = _sum(of_hidden, None if of_states is None else channels_last(of_states[number]), like=new)
            step = Step(gates.unbind(), cells_before[number], new, tanh_new, total.per_gate)
            of_gates = torch.empty_like(gates)
            of_cell = step.gradients(of_hidden, of_cell, of_gates.unbind())
            of_joint = total.add(step, of_gates, tiles, ctx.grid)
            of_step, of_hidden = torch.tensor_split(of_joint, (ctx.channels_in - total.skipped,), dim=3)
            of_inputs.append(of_step)
        of_maps = torch.stack(of_inputs[::-1]).permute(0, 1, 4, 2, 3) if ctx.needs_input_grad[0] else None
        of_first = [
            channels_first(maps) if ctx.has_state and maps is not None else None for maps in (of_hidden, of_cell)
        ]
        return of_maps, *of_first, total.of_kernel, total.of_bias, total.of_peephole, None, None


class _Gradients:
    """Gradients of a level's weights, which add up over the steps."""

    def __init__(self, kernel: Kernel, peephole: Tensor | None, skipped: int) -> None:
        self.kernel, self.skipped = kernel, skipped  # channels of input that need no gradient
        self.per_gate = None if peephole is None else peephole.flatten(1)
        self.of_kernel, self.of_bias = torch.zeros_like(kernel), kernel.new_zeros(kernel.shape[2])
        self.of_peephole = None if peephole is None else torch.zeros_like(peephole)

    def add(
        self, step: Step, of_gates: Float[Tensor, "4 b h w d"], tiles: Tiles, grid: Grid
    ) -> Float[Tensor, "b h w c_d"]:
        """Add the gradients of one step; return the gradient of its input and state side by side."""
        if self.of_peephole is not None:
            self.of_peephole += step.of_peephole(of_gates.unbind()).view_as(self.of_peephole)
        transform, channels = of_kernel(self.kernel), tiles.shape[2]  # fewer channels without a state
        of_products = transform.products_of(of_gates, grid)
        self.of_bias += of_products[0].sum(dim=0)
        self.of_kernel[:, :channels].baddbmm_(tiles.mT, of_products)
        if channels == self.skipped:
            return step.new[..., :0]
        return transform.maps_of(of_products @ self.kernel[:, self.skipped : channels].mT, grid)


def _sum(first: Tensor | None, second: Tensor | None, like: Tensor) -> Tensor:
    """Return the sum of those that are given, or zeros like a third."""
    if first is not None and second is not None:
        return first + second
    given = first if first is not None else second
    return torch.zeros_like(like) if given is None else given
