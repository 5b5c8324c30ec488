"""The arena's measuring: memory and growth of known networks, equal networks, exact repetition."""

import math
import time
import weakref

import pytest
import torch
from torch import Tensor, nn

from benchmarks.arena.backbone import Backbone, positions
from benchmarks.arena.costs import FRAME_GROWS, FRAMES_GROW, Effort, attention_alone, growth, table
from benchmarks.arena.measure import Cost, cost_in_turns, exponent, held_bytes, megabytes
from benchmarks.arena.patterns import EXPLICIT, FACTORISED, JOINT, PATTERNS, SUB_LAYERS, Pattern, tokens, weights_mb
from benchmarks.arena.picture import FAMILIES, apart
from benchmarks.arena.quality import SHORT, Lesson, Training, accuracy
from benchmarks.arena.report import quality_lines
from fieldcast.models.video_transformer.attention.exact.window import Window
from fieldcast.models.video_transformer.attention.patterns import ATTENTIONS
from tests.campaign import cases

TINY = Training({"recall": Lesson((3, 5, 7), steps=3, batch=2)}, dim=24, heads=3, test_films=4)


def test_held_bytes_counts_each_storage_once_and_no_weights() -> None:
    values = torch.randn(3, 5, requires_grad=True)
    linear = nn.Linear(5, 7)
    assert held_bytes(lambda: linear(values), list(linear.parameters())) == 3 * 5 * 4
    assert held_bytes(lambda: values * values) == 3 * 5 * 4
    assert held_bytes(lambda: values.exp().sin()) == 3 * 5 * 4  # exp keeps its result, which sin keeps too


def test_what_was_measured_is_freed() -> None:
    values = torch.randn(3, 5, requires_grad=True)
    results: list[weakref.ref[Tensor]] = []

    def forward() -> Tensor:
        result = values.exp()  # keeps its result
        results.append(weakref.ref(result))
        return result

    held_bytes(forward)
    assert results[0]() is None


def test_exponent_of_a_power_law() -> None:
    assert exponent([2, 4, 8], [3 * n**1.7 for n in (2, 4, 8)]) == pytest.approx(1.7)
    assert math.isnan(exponent([2], [3.0]))


def test_growth_leaves_small_sizes_out_where_enough_are_left() -> None:
    costs = {n: Cost(float(max(n, 2048)), float(n**2)) for n in (1024, 2048, 4096, 8192)}
    assert growth(costs) == pytest.approx((1.0, 2.0))
    assert growth({n: costs[n] for n in (1024, 2048, 4096)})[0] < 0.6


class Sleepy(nn.Module):
    """Takes the next of some times (in seconds) for each forward pass."""

    def __init__(self, *naps: float) -> None:
        super().__init__()
        self.naps = list(naps)

    def forward(self, values: Tensor) -> Tensor:
        time.sleep(self.naps.pop(0))
        return values * 2


def test_the_best_turn_counts_and_what_has_taken_enough_rests_after_two() -> None:
    quick, slow = Sleepy(0.0, 0.3, 0.3, 0.0), Sleepy(0.0, 0.3, 0.3)
    costs = cost_in_turns({"slow": (slow, torch.ones(3))}, turns=3, enough=0.5)
    assert costs["slow"].seconds >= 0.3
    costs = cost_in_turns({"quick": (quick, torch.ones(3))}, turns=3, enough=9.0)
    assert costs["quick"].seconds < 0.3
    assert not quick.naps
    assert not slow.naps


@pytest.mark.parametrize(("name", "power"), [(EXPLICIT, 2.0), (JOINT, 1.0), (FACTORISED, 1.0), ("linear", 1.0)])
def test_memory_grows_with_the_square_only_where_weights_are_written_out(name: str, power: float) -> None:
    sizes = [(t, 16, 16) for t in (4, 8, 12)]
    held = []
    for grid in sizes:
        network = nn.Sequential(*PATTERNS[name].mixers(16, 4, count=1))
        held.append(megabytes(network, torch.randn(1, *grid, 16)))
    assert exponent([tokens(grid) for grid in sizes], held) == pytest.approx(power, abs=0.2)


def test_what_does_not_fit_is_left_out_and_so_is_what_follows_slow_sizes() -> None:
    effort = Effort(turns=2, enough=0.0, slowest=0.0)
    costs = table(attention_alone(24, 3), [(1, 3, 5), (2, 3, 5)], effort, "cpu", 24, 3)
    assert all(list(line) == [15] for line in costs.values())
    assert weights_mb(PATTERNS[EXPLICIT].mixers(24, 3), (16, 16, 16)) == 4 * 3 * 4096**2 * (4 + 2) / 1e6


def test_grids_have_the_numbers_of_tokens_that_are_compared() -> None:
    assert [tokens(grid) for grid in FRAMES_GROW] == [1024, 2048, 4096, 8192, 16384]
    assert [tokens(grid) for grid in FRAME_GROWS] == [2048, 4096, 8192, 16384]


def test_every_pattern_of_the_video_transformer_is_compared_and_coloured() -> None:
    assert set(PATTERNS) == {*ATTENTIONS, EXPLICIT}
    assert {name for _, names in FAMILIES.values() for name in names} == set(PATTERNS)


OTHER_SIZES = {"linformer", "deformable", "reformer"}  # maps of tokens, convolutions; one map for queries and keys


@pytest.mark.parametrize("name", sorted(set(PATTERNS) - OTHER_SIZES))
def test_networks_have_equally_many_weights(name: str) -> None:
    ours, joint = (Backbone(1, 64, PATTERNS[it].mixers(64, 4)).parameters() for it in (name, JOINT))
    assert sum(it.numel() for it in ours) == pytest.approx(sum(it.numel() for it in joint), rel=0.1)


def test_positions_of_all_tokens_differ() -> None:
    where = positions(4, 16, 32, 64).reshape(-1, 64)
    assert torch.pdist(where).min() > 0.1


@pytest.mark.parametrize("name", [name for name in PATTERNS if name != EXPLICIT])
def test_the_same_seed_learns_exactly_the_same(name: str) -> None:
    state = torch.get_rng_state()
    first = accuracy(PATTERNS[name], "recall", TINY, seed=5)
    torch.randn(3)
    assert accuracy(PATTERNS[name], "recall", TINY, seed=5) == first
    torch.set_rng_state(state)


def test_training_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    accuracy(PATTERNS[JOINT], "recall", TINY, seed=5)
    assert torch.equal(torch.get_rng_state(), state)


def test_labels_keep_apart() -> None:
    assert apart([1.0, 1.5, 9.0, 9.0], 1.0) == pytest.approx([0.75, 1.75, 8.5, 9.5])
    assert apart([1.0, 3.0], 1.0) == [1.0, 3.0]


def test_a_column_for_each_task() -> None:
    right = {"recall": {JOINT: 0.25, "linear": 1.0}}
    lines = quality_lines(right, TINY, {JOINT: 200, "linear": 100})
    assert lines[1].split(": ")[1] == "what was here 2 frames ago? 3 steps of 2 films of 3 x 5 x 7 tokens"
    assert [line.split() for line in lines[3:6]] == [
        ["weights", "of", "joint", "recall"],
        [JOINT, "200", "1.00", "25.0", "%"],
        ["linear", "100", "0.50", "100.0", "%"],
    ]


@pytest.mark.slow
@pytest.mark.parametrize("task", cases(SHORT, ["recall"]))
def test_attention_over_all_tokens_learns_every_task_and_a_short_window_none(task: str) -> None:
    """What is asked for lies two frames, or 3 rows and 5 columns, away; the window is of two frames, rows and columns.

    What a short window may know is how alike near cells are.
    """
    assert accuracy(PATTERNS[JOINT], task, Training(), seed=1) >= 0.95
    assert accuracy(ShortWindow("window"), task, Training(), seed=1) <= 0.6


class ShortWindow(Pattern):
    """Windows of two cells a side that do not shift, so that sub-layers on top of each other see no farther."""

    def mixers(self, dim: int, heads: int, count: int = SUB_LAYERS) -> list[nn.Module]:
        return [Window(dim, heads, window=(2, 2, 2)) for _ in range(count)]
