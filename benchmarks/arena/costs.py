"""Cost of each pattern at growing numbers of tokens, and of factorised attention relative to joint."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from tqdm import tqdm

from .backbone import Backbone
from .measure import Cost, cost_in_turns, exponent
from .patterns import EXPLICIT, FACTORISED, PATTERNS, Grid, Pattern, tokens, weights_mb

FRAMES_GROW: Sequence[Grid] = ((4, 16, 16), (8, 16, 16), (16, 16, 16), (32, 16, 16), (64, 16, 16))
FRAME_GROWS: Sequence[Grid] = ((16, 8, 16), (16, 16, 16), (16, 16, 32), (16, 32, 32))
FITTED_FROM = 2048  # tokens: below, fixed costs hide how time grows
MOST_MB = 4000.0
Table = dict[str, dict[int, Cost]]  # pattern: tokens: cost
Build = Callable[[Pattern], tuple[nn.Module, int]]  # a network and the channels of its input


@dataclass(frozen=True)
class Effort:
    """Duration of a measurement."""

    turns: int = 3
    enough: float = 1.0  # seconds after which a network needs no third turn
    slowest: float = 1.0  # seconds of a step after which a pattern is not tried at twice as many tokens


FULL = Effort(turns=7, enough=20.0, slowest=60.0)


def attention_alone(dim: int, heads: int) -> Build:
    """Return the mixers of four sub-layers one after the other, without anything else."""
    return lambda pattern: (nn.Sequential(*pattern.mixers(dim, heads)), dim)


def whole_stack(dim: int, heads: int) -> Build:
    """Return the backbone of the tasks."""
    return lambda pattern: (Backbone(1, dim, pattern.mixers(dim, heads)), 1)


def table(build: Build, grids: Sequence[Grid], effort: Effort, device: str, dim: int, heads: int) -> Table:
    """Return the costs of all patterns; those of one size are measured in turns.

    A pattern that does not fit or is slow is left out.
    """
    costs: Table = {name: {} for name in PATTERNS}
    left = dict(PATTERNS)
    for grid in tqdm(grids, "costs", unit="size"):
        left = {name: it for name, it in left.items() if weights_mb(it.mixers(dim, heads), grid) <= MOST_MB}
        networks = {}
        for name, pattern in left.items():
            torch.manual_seed(0)
            network, channels = build(pattern)
            networks[name] = network.to(device), torch.randn(1, *grid, channels).to(device)
        for name, cost in cost_in_turns(networks, turns=effort.turns, enough=effort.enough).items():
            costs[name][tokens(grid)] = cost
            if cost.seconds > effort.slowest:
                del left[name]
    return costs


def growth(costs: Mapping[int, Cost]) -> tuple[float, float]:
    """Return the exponents of time and memory from `FITTED_FROM` tokens on, or of all sizes if those are too few."""
    sizes = [size for size in costs if size >= FITTED_FROM]
    sizes = sizes if len(sizes) >= 3 else list(costs)
    return (
        exponent(sizes, [costs[size].seconds for size in sizes]),
        exponent(sizes, [costs[size].megabytes for size in sizes]),
    )


@dataclass(frozen=True)
class Ratio:
    """Time and memory of factorised against joint attention written out, and the growth of the factorised one."""

    times_faster: float
    times_smaller: float
    growth_by_frames: tuple[float, float]
    growth_by_frame_size: tuple[float, float]
    definition: str = (
        "attention alone (projections included), forward and backward, float32, batch 1, d 256, 8 heads, 16 frames of "
        "16 x 16 tokens; two sub-layers each: one along time and one over space, against two over all tokens"
    )


def factorised_ratio(effort: Effort, device: str, dim: int = 256, heads: int = 8) -> Ratio:
    """Return the ratio at 4096 tokens, and the growth from 2048 to 16384 with more or with larger frames."""
    grid = FRAME_GROWS[1]
    pairs = {}
    for name in (EXPLICIT, FACTORISED):
        mixers = PATTERNS[name].mixers(dim, heads, count=2)
        pairs[name] = nn.Sequential(*mixers).to(device), torch.randn(1, *grid, dim).to(device)
    costs = cost_in_turns(pairs, turns=max(effort.turns, 5), enough=4 * effort.enough)
    joint, ours = costs[EXPLICIT], costs[FACTORISED]
    growths: list[tuple[float, float]] = []
    for grids in (FRAMES_GROW[1:], FRAME_GROWS):
        networks = {str(tokens(it)): (pairs[FACTORISED][0], torch.randn(1, *it, dim).to(device)) for it in grids}
        measured = cost_in_turns(networks, turns=max(effort.turns, 5), enough=4 * effort.enough)
        growths.append(growth({int(size): cost for size, cost in measured.items()}))
    return Ratio(joint.seconds / ours.seconds, joint.megabytes / ours.megabytes, growths[0], growths[1])
