"""Costs of a model: weights, multiply-adds, seconds and memory, measured by the stages that spend them."""

from __future__ import annotations

import platform
import resource
import sys
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.atomic import make_folder, replace_durable

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Costs:
    """Costs of one model; None where there is none, or where it was not measured."""

    parameters: int | None = None
    macs: int | None = None  # multiply-adds of one forecast on the training crop or the whole field
    training_seconds: float | None = None
    forecast_milliseconds: float | None = None  # of one init time, reading and writing not counted
    peak_memory_mb: float | None = None  # of the process that forecast, libraries included
    budget: Mapping[str, Any] | None = None  # of a training: what makes two of them equal in effort
    device: str = ""


def write(costs: Costs, path: Path) -> None:
    """Write the costs that were measured to `path` as JSON."""
    make_folder(path.parent)
    measured = {key: value for key, value in asdict(costs).items() if value is not None}
    replace_durable(path, manifest.sealed(measured))


def read(*paths: Path) -> Costs:
    """Return the costs in all of `paths` together, of which later ones win; files that are not there add nothing."""
    measured: dict[str, Any] = {}
    for path in paths:
        measured |= manifest.unsealed(path, manifest.read_bytes(path, manifest.REMEDY)) if path.exists() else {}
    return Costs(**measured)


def peak_memory_mb() -> float:
    """Return the most memory that this process, or one that it started, has held: of its GPU if it used one."""
    torch = sys.modules.get("torch")  # not imported for this: it would be the larger part of the result
    if torch is not None and torch.cuda.is_available():
        return round(int(torch.cuda.max_memory_allocated()) / 1e6, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return round(max(peaks) * unit / 1e6, 1)


def device_name(*, learned: bool) -> str:
    """Return the GPU, or the processor and the number of threads, that a model runs on here."""
    processor = platform.processor() or platform.machine()
    if not learned:
        return processor
    import torch

    if torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"{processor}, {torch.get_num_threads()} threads"


def count_macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the multiply-adds of `model` on one history of `shape` (t, c, h, w): half of what torch counts as FLOPs.

    Matrix products, convolutions and attention are counted, pointwise operations are not, as papers do.
    """
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    counted = deepcopy(model).eval().requires_grad_(False)  # the counter stumbles over gradients of views
    like = next(model.parameters())  # of the training's precision
    plain = sdpa_kernel(SDPBackend.MATH)  # the counter does not see into the CPU's fused attention
    with FlopCounterMode(display=False) as counter, torch.no_grad(), plain:
        counted(torch.zeros(1, *shape, device=like.device, dtype=like.dtype))
    return int(counter.get_total_flops()) // 2
