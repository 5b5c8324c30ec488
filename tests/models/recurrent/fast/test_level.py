"""The fast path of a ConvLSTM, all steps at once by tiles, against the plain path step by step."""

from fractions import Fraction

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fieldcast import models
from fieldcast.models.recurrent.convlstm import ConvLSTMCell
from fieldcast.models.recurrent.fast import level
from fieldcast.models.recurrent.fast.winograd import (
    OUTPUTS,
    POINTS,
    Grid,
    channels_first,
    channels_last,
    matrices,
    of_kernel,
    transformed,
    with_roots,
)
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.unroll import unroll

CHANNELS, HIDDEN = 5, 17
GRIDS = [(13, 7), (8, 12), (1, 5)]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def convolved(maps, weight):
    kernel, grid = transformed(weight), Grid(*maps.shape[2:])
    transform = of_kernel(kernel)
    return channels_first(transform.results(transform.tiles(channels_last(maps), grid) @ kernel, grid)[0])


def test_a_polynomial_with_roots():
    assert with_roots([Fraction(2), Fraction(-1, 2)]) == [Fraction(-1), Fraction(-3, 2), Fraction(1)]


@pytest.mark.parametrize("side", POINTS)
def test_matrices_give_a_correlation_exactly(side):
    g, b, a = matrices(OUTPUTS, POINTS[side])
    kernel = [Fraction(k * k - 3, 2) for k in range(side)]
    tile = [Fraction(7 - 3 * k, 5) for k in range(OUTPUTS + side - 1)]

    def times(matrix, vector):
        return [sum(x * y for x, y in zip(row, vector, strict=True)) for row in matrix]

    products = [x * y for x, y in zip(times(g, kernel), times(b, tile), strict=True)]
    assert times(a, products) == [sum(kernel[k] * tile[i + k] for k in range(side)) for i in range(OUTPUTS)]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("side", POINTS)
def test_tiles_convolve(side, grid):
    maps, weight = numbers(2, CHANNELS, *grid), numbers(23, CHANNELS, side, side, seed=1)
    expected = functional.conv2d(maps.double(), weight.double(), padding="same")
    assert (convolved(maps, weight) - expected).abs().max() < 2e-5 * expected.abs().max()


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("side", POINTS)
def test_the_ways_back_are_transposes(side, grid):
    """<y, A x> = <A' y, x> for the way into tiles and the way out of products."""
    transform, grid = of_kernel(transformed(numbers(1, 1, side, side))), Grid(*grid)
    maps = numbers(2, grid.height, grid.width, 3)
    tiles = transform.tiles(maps, grid)
    other = numbers(*tiles.shape, seed=1)
    torch.testing.assert_close(
        (other * tiles).sum(), (transform.maps_of(other, grid) * maps).sum(), rtol=1e-4, atol=1e-3
    )
    results = transform.results(tiles, grid)
    other = numbers(*results.shape, seed=2)
    back = transform.products_of(other, grid)
    torch.testing.assert_close((other * results).sum(), (back * tiles).sum(), rtol=1e-4, atol=1e-3)


def test_a_kernel_is_kept_until_a_weight_changes():
    weights = [torch.nn.Parameter(numbers(5, 2, 3, 3, seed=seed)) for seed in (0, 1)]
    with torch.no_grad():
        first = transformed(*weights)
        assert transformed(*weights) is first
        weights[0].add_(1)
        assert not torch.equal(transformed(*weights), first)
        torch.testing.assert_close(transformed(*weights)[:, 2:], first[:, 2:])
    assert transformed(*weights).requires_grad


def build_cell(shaken, side, peephole):
    options = RecurrentOptions(hidden=(HIDDEN,), kernel=side, peephole=peephole)
    return shaken(ConvLSTMCell(CHANNELS, HIDDEN, options))


def results_and_gradients(cell, inputs, state, *, last_only):
    """Hidden states and last states of four steps, and the gradients of what they are from and of all weights."""
    sources = [maps.detach().clone().requires_grad_() for maps in (inputs, *(state or ())) if maps is not None]
    given = iter(sources)
    inputs = None if inputs is None else next(given)
    state = None if state is None else tuple(given)
    hidden, last = unroll(cell, inputs, state, 4)
    total = last[0].square().sum() + last[1].sin().sum()
    if not last_only:
        total = total + (hidden * torch.linspace(-1, 1, hidden.numel()).reshape(hidden.shape).to(hidden)).sum()
    used = [p for name, p in cell.named_parameters() if inputs is not None or not name.startswith("input")]
    return [hidden, *last], torch.autograd.grad(total, [*sources, *used])


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("given", ["inputs", "state", "inputs and state"])
@pytest.mark.parametrize("peephole", ["channel", "none"])
@pytest.mark.parametrize("side", POINTS)
def test_a_level_equals_its_steps(side, peephole, given, last_only, shaken, monkeypatch):
    monkeypatch.setattr(level, "AT_ONCE", 16)  # one sample at a time, of two
    cell = build_cell(shaken, side, peephole)
    inputs = numbers(4, 2, CHANNELS, 13, 9) if "inputs" in given else None
    state = (numbers(2, HIDDEN, 13, 9, seed=1), numbers(2, HIDDEN, 13, 9, seed=2)) if "state" in given else None
    assert cell.at_once(inputs, state, 4) is not None
    ours, our_gradients = results_and_gradients(cell, inputs, state, last_only=last_only)
    cell = cell.double()  # too precise for tiles: step by step
    inputs = None if inputs is None else inputs.double()
    state = None if state is None else tuple(maps.double() for maps in state)
    assert cell.at_once(inputs, state, 4) is None
    theirs, their_gradients = results_and_gradients(cell, inputs, state, last_only=last_only)
    for one, other in zip(ours, theirs, strict=True):
        assert (one - other).abs().max() < 1e-4
    for one, other in zip(our_gradients, their_gradients, strict=True):
        assert (one - other).norm() < 1e-4 * other.norm()


def test_inputs_that_want_no_gradient(shaken):
    cell, inputs = build_cell(shaken, 3, "channel"), numbers(4, 2, CHANNELS, 13, 9)
    alone = torch.autograd.grad(unroll(cell, inputs, None, 4)[0].sum(), cell.parameters())
    beside = torch.autograd.grad(unroll(cell, inputs.requires_grad_(), None, 4)[0].sum(), cell.parameters())
    for one, other in zip(alone, beside, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_same(mode, shaken):
    cell, inputs = build_cell(shaken, 5, "channel"), numbers(4, 2, CHANNELS, 13, 9)
    with mode():
        for _ in range(2):  # the second time with the kernel that was kept
            states, (hidden, _) = unroll(cell, inputs, None, 4)
    assert torch.equal(states, unroll(cell, inputs, None, 4)[0].detach())
    assert torch.equal(states[-1], hidden)


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"kernel": 7}, (2, 2, CHANNELS, 16, 16)),
        ({"kernel": 3, "state_kernel": 5}, (2, 2, CHANNELS, 16, 16)),
        ({"norm": "group"}, (2, 2, CHANNELS, 16, 16)),
        ({}, (2, 2, CHANNELS, 8, 8)),  # 4 tiles
    ],
)
def test_what_has_no_function_goes_step_by_step(changes, shape, shaken):
    cell = shaken(ConvLSTMCell(CHANNELS, HIDDEN, RecurrentOptions(hidden=(HIDDEN,), **changes)))
    assert cell.at_once(numbers(*shape), None, 2) is None
    assert unroll(cell, numbers(*shape), None, 2)[0].shape == (2, 2, HIDDEN, *shape[3:])


def test_mixed_precision_goes_step_by_step(shaken):
    cell, inputs = build_cell(shaken, 3, "channel"), numbers(2, 2, CHANNELS, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert cell.at_once(inputs, None, 2) is None


def test_operations_are_counted_as_the_model_defines_them():
    """2 k^2 (c_in + d) 4 d for each cell of each step, less the state's share in the first, as it is zero."""
    cell = ConvLSTMCell(CHANNELS, HIDDEN, RecurrentOptions(hidden=(HIDDEN,), kernel=5))
    with FlopCounterMode(display=False) as counter:
        unroll(cell, numbers(3, 2, CHANNELS, 16, 12), None, 3)
    of_a_channel = 2 * 25 * 4 * HIDDEN * 2 * 16 * 12
    assert counter.get_total_flops() == of_a_channel * (3 * CHANNELS + 2 * HIDDEN)


def test_a_whole_model_by_tiles_trains_as_ever(monkeypatch):
    options = models.OPTIONS["recurrent"].model_validate({"hidden": (16, 24), "kernel": 3, "patch": 3})
    sizes = {"channels_in": 3, "channels_out": 1, "history": 3, "horizon": 4, "step_minutes": 5}
    torch.manual_seed(0)
    model = models.build("recurrent", options, **sizes)
    torch.nn.init.normal_(model.readout.weight, std=0.1)
    history = numbers(2, 3, 3, 33, 49)
    losses = []
    for fewest in (level.TILES, 10**9):
        monkeypatch.setattr(level, "TILES", fewest)
        model.zero_grad()
        loss = model(history).square().mean()
        loss.backward()
        losses.append((loss.item(), [parameter.grad.clone() for parameter in model.parameters()]))
    (one, gradients), (other, expected) = losses
    assert one == pytest.approx(other, rel=1e-5)
    for gradient, reference in zip(gradients, expected, strict=True):
        assert (gradient - reference).norm() <= 1e-3 * reference.norm() + 1e-9
