"""The pointwise part of a ConvLSTM step, forward and backward, in single precision and in few passes over memory."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

Gates = Float[Tensor, "b 4d h w"]  # input, forget, candidate, output
Maps = Float[Tensor, "b d h w"]

sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input  # grad * y * (1 - y) in one pass
tanh_backward = torch.ops.aten.tanh_backward.grad_input


def cell_update(gates: Gates, cell: Maps | None, peephole: Float[Tensor, "3 d 1 1"] | None) -> tuple[Maps, Maps]:
    """The next (hidden, cell) from the convolved gates and the old cell state, None for zeros.

    The hidden state has the precision of the gates; the cell state, which sums over many steps, has at least float32.
    """
    hidden, cell = _CellUpdate.apply(gates, cell, peephole)  # type: ignore[no-untyped-call]
    return hidden, cell


class _CellUpdate(torch.autograd.Function):
    """Shi et al. 2015, equation 3, without its convolutions."""

    @staticmethod
    def forward(ctx: Any, gates: Gates, cell: Maps | None, peephole: Tensor | None) -> tuple[Maps, Maps]:
        ctx.set_materialize_grads(False)
        ctx.dtype = gates.dtype
        precise = gates.to(torch.promote_types(gates.dtype, torch.float32), copy=True)
        i, f, g, o = precise.chunk(4, dim=1)
        if peephole is not None and cell is not None:
            i.addcmul_(peephole[0], cell)
            f.addcmul_(peephole[1], cell)
        i.sigmoid_()
        _tanh_(g)
        new = i * g
        if cell is not None:
            new.addcmul_(f.sigmoid_(), cell)
        if peephole is not None:
            o.addcmul_(peephole[2], new)
        o.sigmoid_()
        seen = _tanh_(new.clone())
        ctx.save_for_backward(precise, cell, new, seen, peephole)
        return (o * seen).to(gates.dtype), new

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_hidden: Maps | None, of_new: Maps | None) -> tuple[Tensor | None, ...]:
        precise, cell, new, seen, peephole = ctx.saved_tensors
        i, f, g, o = precise.chunk(4, dim=1)
        of_gates = torch.zeros_like(precise) if cell is None else torch.empty_like(precise)
        of_i, of_f, of_g, of_o = of_gates.chunk(4, dim=1)
        of_hidden = torch.zeros_like(new) if of_hidden is None else of_hidden.to(new.dtype)
        sigmoid_backward(of_hidden * seen, o, grad_input=of_o)
        total = torch.ops.aten.tanh_backward(of_hidden * o, seen)
        total = total if of_new is None else total.add_(of_new)
        if peephole is not None:
            total.addcmul_(of_o, peephole[2])
        sigmoid_backward(total * g, i, grad_input=of_i)
        tanh_backward(total * i, g, grad_input=of_g)
        of_cell = None
        if cell is not None:
            sigmoid_backward(total * cell, f, grad_input=of_f)
            of_cell = total.mul_(f)
            if peephole is not None:
                of_cell.addcmul_(of_i, peephole[0]).addcmul_(of_f, peephole[1])
        of_peephole = None if peephole is None else _of_peephole(of_gates, cell, new)
        return of_gates.to(ctx.dtype), of_cell, of_peephole


def _of_peephole(of_gates: Gates, cell: Maps | None, new: Maps) -> Float[Tensor, "3 d 1 1"]:
    of_i, of_f, _, of_o = of_gates.chunk(4, dim=1)
    of_o = (of_o * new).sum(dim=(0, 2, 3))
    zero = torch.zeros_like(of_o)
    of_i, of_f = (zero, zero) if cell is None else ((part * cell).sum(dim=(0, 2, 3)) for part in (of_i, of_f))
    return torch.stack([of_i, of_f, of_o])[:, :, None, None]


def _tanh_(values: Tensor) -> Tensor:
    """Tanh in place, as 2 sigmoid(2 x) - 1: on CPUs a sixth of the time, and as exact for sums of values up to 1."""
    return values.mul_(2).sigmoid_().mul_(2).sub_(1)
