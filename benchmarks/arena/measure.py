"""Seconds and memory of a training step, measured in turns, the best of several."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

Step = Callable[[], None]  # one forward and backward pass


@dataclass
class Cost:
    """Cost of one training step of one network."""

    seconds: float  # the least of all turns
    megabytes: float  # kept for the backward pass on a CPU; the peak of all allocations on a GPU


def cost_in_turns(networks: Mapping[str, tuple[nn.Module, Tensor]], *, turns: int, enough: float) -> dict[str, Cost]:
    """Return the costs of networks on their inputs, each timed once a turn, at least twice, for `enough` seconds."""
    costs = {name: Cost(math.inf, megabytes(*pair)) for name, pair in networks.items()}  # runs each once, too
    steps = {name: training_step(*pair) for name, pair in networks.items()}
    devices = {name: inputs.device.type for name, (_, inputs) in networks.items()}
    spent = dict.fromkeys(networks, 0.0)
    for turn in range(turns):
        for name, step in steps.items():
            if turn < 2 or spent[name] < enough:
                taken = seconds(step, devices[name])
                spent[name] += taken
                costs[name].seconds = min(costs[name].seconds, taken)
    return costs


def training_step(network: nn.Module, inputs: Tensor) -> Step:
    """Return a forward and backward pass, to the gradients of all weights and of the inputs."""

    def step() -> None:
        network.zero_grad(set_to_none=True)
        network(inputs.detach().requires_grad_()).square().mean().backward()

    return step


def megabytes(network: nn.Module, inputs: Tensor) -> float:
    """Return the memory of a training step: kept for the backward pass on a CPU, the peak of allocations on a GPU."""
    if inputs.device.type == "cpu":
        return held_bytes(lambda: network(inputs.detach().requires_grad_()), list(network.parameters())) / 1e6
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    training_step(network, inputs)()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def held_bytes(forward: Callable[[], Tensor], parameters: Sequence[Tensor] = ()) -> int:
    """Return the bytes that autograd keeps for the backward pass of `forward`, `parameters` not counted."""
    known = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, tuple[int, Tensor]] = {}  # the tensors too, or their addresses would be used again

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes(), tensor.detach()
        return tensor.detach()  # a result that keeps itself would never be freed

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        _result = forward()
    return sum(size for size, _ in kept.values())


def seconds(step: Step, device: str) -> float:
    """Return the time of one call, finished on its device."""
    _wait(device)
    started = time.perf_counter()
    step()
    _wait(device)
    return time.perf_counter() - started


def exponent(tokens: Sequence[int], values: Sequence[float]) -> float:
    """p of values ~ tokens^p by least squares of logarithms; NaN for fewer than two points."""
    if len(tokens) < 2:
        return math.nan
    return float(np.polyfit(np.log(tokens), np.log(values), 1)[0])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
