"""What an attention pattern costs, measured: multiply-adds, and the values that its backward pass needs."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_macs(mixer, t, h, w):
    """Half of what torch counts as FLOPs for one sample; the counter does not see into fused attention."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        mixer(torch.zeros(1, t, h, w, mixer.dim))
    return counter.get_total_flops() / 2


def count_held(mixer, t, h, w, *, device="cpu", valid=None):
    """Numbers, not truth values, that one sample's backward pass needs: each storage once, weights not counted."""
    weights = {parameter.untyped_storage()._cdata for parameter in mixer.parameters()}
    kept = {}

    def keep(tensor):
        if tensor.dtype != torch.bool and tensor.untyped_storage()._cdata not in weights:
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    grid = torch.randn(1, t, h, w, mixer.dim, device=device)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mixer(grid, valid)
    return sum(tensor.untyped_storage().nbytes() // tensor.element_size() for tensor in kept.values())


@pytest.fixture(name="count_macs")
def count_macs_fixture():
    return count_macs


@pytest.fixture(name="count_held")
def count_held_fixture():
    return count_held
