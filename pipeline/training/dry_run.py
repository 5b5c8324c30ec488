"""Memory of a training step, measured without spending any: a dry run on tensors without data.

Formulas for attention alone are beside each pattern (`macs`, `held` of `attention.interface.AttentionPattern`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from fieldcast.models.video_transformer.attention.approximate.clustered import Clustered
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes

COPIES = 5  # of each weight: itself, its gradient, two moments of the optimiser, its running average


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step: of the weights with all that goes with them, and held for each sample of a batch."""

    weights: int
    a_sample: int

    def of_batch(self, size: int) -> int:
        """Bytes at a batch of that size."""
        return self.weights + size * self.a_sample

    def largest_batch(self, budget: int) -> int:
        """The largest batch within `budget` bytes; 0 where not one sample fits."""
        return max(0, (budget - self.weights) // max(self.a_sample, 1))


def held_for_backward(model: nn.Module, history: Tensor) -> int:
    """Bytes of all tensors, weights aside, that a forward pass keeps until the backward pass has used them.

    Each stretch of memory counts once. Transient values are not seen; they are a small part of a deep network.
    """
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    held: dict[int, int] = {}
    kept = []  # alive until the end, so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            held[storage._cdata] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        model(history)
    return sum(held.values())


def training_memory(build: Callable[[], nn.Module], shape: tuple[int, int, int, int]) -> Memory:
    """The memory of training what `build` returns on histories of `shape` (t, c, h, w), in float32.

    Two batch sizes separate the memory of each sample from what is held once. Takes a second and no memory. How many
    clusters queries fall into is up to the data: they count as if each were its own, with all weights written out.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # shapes without data; seconds to import

    with FakeTensorMode(allow_non_fake_inputs=True):
        model = _at_worst(build().train())
        two, three = (held_for_backward(model, torch.zeros(size, *shape)) for size in (2, 3))  # one is a case apart
        weights = sum(parameter.nbytes for parameter in model.parameters())
    return Memory(weights=COPIES * weights + 3 * two - 2 * three, a_sample=three - two)


def _at_worst(model: nn.Module) -> nn.Module:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Clustered):
                exact = AlongAxes(child.dim, child.attention.heads, "J", impl="eager")
                setattr(parent, name, exact)
    return model
