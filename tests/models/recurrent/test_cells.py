"""Each recurrent cell against one number at a time, torch's cells of one grid cell, and one another."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fieldcast.models.recurrent.attention import AttentionCell, attend_in_time, remembered
from fieldcast.models.recurrent.convgru import ConvGRUCell
from fieldcast.models.recurrent.convlstm import ConvLSTMCell, lstm_step
from fieldcast.models.recurrent.model import CELLS
from fieldcast.models.recurrent.norms import groups_of, make_norm
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.repeated import Repeated
from fieldcast.models.recurrent.trajgru import TrajGRUCell, moved
from fieldcast.models.recurrent.unroll import unroll


def options_of(kind="convlstm", **changes):
    return RecurrentOptions(**{"cell": kind, "hidden": (3,), **changes})


def maps(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def convolved(weights, field, out, y, x):
    """One value of a convolution with zeros beyond the edge."""
    _, h, w = field.shape
    side, total = weights.shape[-1], 0.0
    for c in range(field.shape[0]):
        for dy in range(side):
            for dx in range(side):
                yy, xx = y + dy - side // 2, x + dx - side // 2
                if 0 <= yy < h and 0 <= xx < w:
                    total += weights[out, c, dy, dx] * field[c, yy, xx]
    return total


def arrays(module):
    return {name: value.detach().numpy() for name, value in module.named_parameters()}


def lstm_by_scalars(x, state, weights):
    """Equation 3 of Shi et al. 2015."""
    wx, wh = weights["input_to_state.weight"], weights["state_to_state.weight"]
    bias, peephole = weights["bias"], weights["peephole"][:, :, 0, 0]
    hidden, cell = state
    new_hidden, new_cell = np.zeros_like(hidden), np.zeros_like(cell)
    d = len(hidden)
    for c, y, x_ in np.ndindex(hidden.shape):
        i, f, g, o = (
            convolved(wx, x, q * d + c, y, x_) + convolved(wh, hidden, q * d + c, y, x_) + bias[q * d + c]
            for q in range(4)
        )
        old = cell[c, y, x_]
        new = sigmoid(f + peephole[1, c] * old) * old + sigmoid(i + peephole[0, c] * old) * math.tanh(g)
        new_cell[c, y, x_] = new
        new_hidden[c, y, x_] = sigmoid(o + peephole[2, c] * new) * math.tanh(new)
    return new_hidden, new_cell


def gru_by_scalars(x, state, weights):
    """A GRU whose reset gate acts after the convolution."""
    wx, wh = weights["input_to_state.weight"], weights["state_to_state.weight"]
    bias, state_bias = weights["update.bias"], weights["update.state_bias"][:, 0, 0]
    (hidden,) = state
    new = np.zeros_like(hidden)
    d = len(hidden)
    for c, y, x_ in np.ndindex(hidden.shape):
        of_x = [convolved(wx, x, q * d + c, y, x_) + bias[q * d + c] for q in range(3)]
        of_h = [convolved(wh, hidden, q * d + c, y, x_) for q in range(3)]
        reset, update = sigmoid(of_x[0] + of_h[0]), sigmoid(of_x[1] + of_h[1])
        candidate = math.tanh(of_x[2] + reset * (of_h[2] + state_bias[c]))
        new[c, y, x_] = (1 - update) * candidate + update * hidden[c, y, x_]
    return (new,)


@pytest.mark.parametrize(
    ("kind", "by_scalars", "maps_in_state"), [("convlstm", lstm_by_scalars, 2), ("convgru", gru_by_scalars, 1)]
)
def test_cell_equals_scalars(kind, by_scalars, maps_in_state, shaken):
    cell = shaken(CELLS[kind](2, 3, options_of(kind, kernel=3, state_kernel=5))).double()
    inputs = maps(3, 1, 2, 5, 7)
    states, last = unroll(cell, inputs, None, 3)
    state = (np.zeros((3, 5, 7)),) * maps_in_state
    for step in range(3):
        state = by_scalars(inputs[step, 0].numpy(), state, arrays(cell))
        np.testing.assert_allclose(states[step, 0].detach().numpy(), state[0], rtol=0, atol=1e-10)
    for ours, by_hand in zip(last, state, strict=True):
        np.testing.assert_allclose(ours[0].detach().numpy(), by_hand, rtol=0, atol=1e-10)


def test_one_cell_without_peepholes_is_an_lstm_cell(shaken):
    ours, cell = shaken(ConvLSTMCell(5, 3, options_of(kernel=1, peephole="none"))), nn.LSTMCell(5, 3)
    with torch.no_grad():  # both in the order input, forget, candidate, output
        cell.weight_ih.copy_(ours.input_to_state.weight[:, :, 0, 0])
        cell.weight_hh.copy_(ours.state_to_state.weight[:, :, 0, 0])
        cell.bias_ih.copy_(ours.bias)
        cell.bias_hh.zero_()
    inputs = maps(4, 2, 5, 1, 1, dtype=torch.float32)
    state = torch.randn(2, 3), torch.randn(2, 3)
    states, _ = unroll(ours, inputs, tuple(s[:, :, None, None] for s in state), 4)
    for step in range(4):
        state = cell(inputs[step, :, :, 0, 0], state)
        torch.testing.assert_close(states[step, :, :, 0, 0], state[0], rtol=0, atol=1e-6)


def test_one_cell_is_a_gru_cell(shaken):
    ours, cell = shaken(ConvGRUCell(5, 3, options_of("convgru", kernel=1))), nn.GRUCell(5, 3)
    with torch.no_grad():  # both in the order reset, update, candidate
        cell.weight_ih.copy_(ours.input_to_state.weight[:, :, 0, 0])
        cell.weight_hh.copy_(ours.state_to_state.weight[:, :, 0, 0])
        cell.bias_ih.copy_(ours.update.bias)
        cell.bias_hh.zero_()
        cell.bias_hh[6:].copy_(ours.update.state_bias[:, 0, 0])
    inputs = maps(4, 2, 5, 1, 1, dtype=torch.float32)
    state = torch.randn(2, 3)
    states, _ = unroll(ours, inputs, (state[:, :, None, None],), 4)
    for step in range(4):
        state = cell(inputs[step, :, :, 0, 0], state)
        torch.testing.assert_close(states[step, :, :, 0, 0], state, rtol=0, atol=1e-6)


@pytest.mark.parametrize("cell", [None, "given"])
@pytest.mark.parametrize("peephole", [None, "given"])
def test_gradients_of_a_step(cell, peephole):
    gates = maps(4, 2, 3, 3, 5).requires_grad_()
    cell = cell and maps(2, 3, 3, 5, seed=1).requires_grad_()
    peephole = peephole and maps(3, 3, 1, 1, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lstm_step, (gates, cell, peephole))


def test_the_cell_state_keeps_its_precision():
    hidden, cell = lstm_step(maps(4, 1, 2, 3, 2).bfloat16(), None, None)
    assert (hidden.dtype, cell.dtype) == (torch.bfloat16, torch.float32)
    hidden, _ = lstm_step(maps(4, 1, 2, 3, 2).bfloat16(), cell, None)
    assert hidden.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", CELLS)
def test_without_input_or_state_is_with_zeros(kind, shaken):
    cell = shaken(CELLS[kind](2, 4, options_of(kind, hidden=(4,)))).double()
    _, state = unroll(cell, maps(3, 1, 2, 5, 7), None, 3)
    driven, _ = unroll(cell, torch.zeros(4, 1, 2, 5, 7).double(), state, 4)
    free, _ = unroll(cell, None, state, 4)
    torch.testing.assert_close(driven, free)
    if kind != "attention":  # which has no map to look at, rather than one of zeros
        zero = tuple(torch.zeros_like(part) for part in state)
        first, from_zero = unroll(cell, maps(3, 1, 2, 5, 7), None, 3)[0], unroll(cell, maps(3, 1, 2, 5, 7), zero, 3)[0]
        torch.testing.assert_close(first, from_zero)


@pytest.mark.parametrize(
    ("flow", "places"), [((1, 0), (0, 1)), ((-2, 0), (0, -2)), ((0, 3), (3, 0)), ((1, -1), (-1, 1))]
)
def test_a_flow_moves_the_state(flow, places):
    """(1, 0) moves it by one cell towards larger x; what comes in over the edge is zero."""
    state = maps(2, 3, 5, 7)
    flows = torch.tensor(flow, dtype=torch.float64)[None, :, None, None].expand(2, 2, 5, 7)
    expected = torch.zeros_like(state)
    for y, x in np.ndindex(5, 7):
        if 0 <= y - places[0] < 5 and 0 <= x - places[1] < 7:
            expected[:, :, y, x] = state[:, :, y - places[0], x - places[1]]
    torch.testing.assert_close(moved(state, flows), expected, rtol=0, atol=1e-12)


def test_flows_of_every_cell_by_scalars():
    state, flows = maps(1, 2, 5, 7), 2 * maps(1, 6, 5, 7, seed=1)
    result = moved(state, flows)
    assert result.shape == (1, 6, 5, 7)
    for l, c, y, x in np.ndindex(3, 2, 5, 7):  # noqa: E741
        from_x, from_y = x - flows[0, 2 * l, y, x].item(), y - flows[0, 2 * l + 1, y, x].item()
        left, top = math.floor(from_x), math.floor(from_y)
        total = 0.0
        for yy in (top, top + 1):
            for xx in (left, left + 1):
                if 0 <= yy < 5 and 0 <= xx < 7:
                    total += (1 - abs(from_y - yy)) * (1 - abs(from_x - xx)) * state[0, c, yy, xx].item()
        assert result[0, l * 2 + c, y, x].item() == pytest.approx(total, abs=1e-12)


def test_a_single_row_can_move():
    row = torch.arange(5.0).reshape(1, 1, 1, 5)
    flows = torch.tensor([1.0, 0.0])[None, :, None, None].expand(1, 2, 1, 5)
    torch.testing.assert_close(moved(row, flows), torch.tensor([0.0, 0.0, 1.0, 2.0, 3.0]).reshape(1, 1, 1, 5))


def test_one_still_flow_is_a_gru_with_a_1x1_state_kernel(shaken):
    still = shaken(TrajGRUCell(2, 3, options_of("trajgru", flows=1)))
    gru = ConvGRUCell(2, 3, options_of("convgru", state_kernel=1))
    for parameter in still.flow.parameters():
        nn.init.zeros_(parameter)
    kept = {name: value for name, value in still.state_dict().items() if "flow" not in name}
    gru.load_state_dict(kept)
    inputs = maps(4, 2, 2, 5, 7, dtype=torch.float32)
    ours, theirs = unroll(still, inputs, None, 4)[0], unroll(gru, inputs, None, 4)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    nn.init.constant_(still.flow.bias, 1.0)
    assert (unroll(still, inputs, None, 4)[0] - theirs).abs().max() > 1e-3


def test_attention_in_time_is_attention_of_each_cell():
    query, keys, values = maps(2, 3, 4, 5, 7), maps(6, 2, 3, 4, 5, 7, seed=1), maps(6, 2, 3, 4, 5, 7, seed=2)
    bias = maps(3, 6, seed=3)
    ours = attend_in_time(query, keys, values, bias)
    for y, x in np.ndindex(5, 7):
        of_cell = [kept[..., y, x].permute(1, 2, 0, 3) for kept in (keys, values)]
        theirs = functional.scaled_dot_product_attention(
            query[:, :, None, :, y, x], *of_cell, attn_mask=bias[None, :, None]
        )
        torch.testing.assert_close(ours[..., y, x], theirs[:, :, 0], rtol=0, atol=1e-12)


def test_the_last_maps_are_remembered():
    kept = None
    for number in range(5):
        kept = remembered(kept, torch.full((1, 1, 1, 1, 1), float(number)), 3)
    assert kept.flatten().tolist() == [2, 3, 4]


def test_attention_sees_no_more_than_its_memory(shaken):
    cell = shaken(AttentionCell(2, 4, options_of("attention", hidden=(4,), heads=2, memory=3))).double()
    nn.init.zeros_(cell.state_to_state.weight)  # else older maps are still felt through hidden states
    inputs = maps(6, 1, 2, 3, 5).requires_grad_()
    states, _ = unroll(cell, inputs, None, 6)
    (gradient,) = torch.autograd.grad(states[4].sum(), inputs)
    assert [bool((of_step != 0).any()) for of_step in gradient] == [False, False, True, True, True, False]


@pytest.mark.parametrize("kind", ["convlstm", "convgru", "attention"])
@pytest.mark.parametrize(("kernel", "state_kernel"), [(3, 5), (5, 3)])
def test_reach_grows_by_half_a_state_kernel_a_step(kind, kernel, state_kernel, shaken):
    options = options_of(kind, hidden=(4,), kernel=kernel, state_kernel=state_kernel)
    cell = shaken(CELLS[kind](1, 4, options)).double()
    inputs = maps(4, 1, 1, 23, 23).requires_grad_()
    states, _ = unroll(cell, inputs, None, 4)
    (gradient,) = torch.autograd.grad(states[-1, 0, :, 11, 11].sum(), inputs)
    for step, of_step in enumerate(gradient[:, 0, 0]):
        radius = (kernel - 1) // 2 + (3 - step) * (state_kernel - 1) // 2
        reached = torch.zeros(23, 23, dtype=torch.bool)
        reached[11 - radius : 12 + radius, 11 - radius : 12 + radius] = True
        assert torch.equal(of_step != 0, reached)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (20, 1), (63, 1), (64, 2), (96, 3), (256, 8), (100, 2), (97, 1)]
)
def test_groups_hold_32_channels_where_there_are_so_many(channels, groups):
    assert groups_of(channels) == groups


def test_layer_norm_is_of_each_cell_alone():
    fields = maps(2, 5, 3, 7, dtype=torch.float32)
    result = make_norm("layer", 5)(fields)
    mean, variance = fields.mean(dim=1, keepdim=True), fields.var(dim=1, keepdim=True, unbiased=False)
    torch.testing.assert_close(result, (fields - mean) / (variance + 1e-5).sqrt())
    assert make_norm("none", 5) is None


@pytest.mark.parametrize(("side", "biased"), [(3, True), (1, False)])
def test_a_kernel_laid_out_once_convolves_as_ever(side, biased):
    weight, bias = maps(7, 5, side, side, dtype=torch.float32), maps(7, dtype=torch.float32) if biased else None
    convolve = Repeated(weight)
    with torch.inference_mode():
        once = Repeated(weight)
        for seed in range(2):
            state = maps(2, 5, 3, 11, seed=seed, dtype=torch.float32)
            torch.testing.assert_close(once(state, bias), convolve(state, bias), rtol=1e-5, atol=1e-5)
            with torch.autocast("cpu", dtype=torch.bfloat16):  # laid out only where the processor has bfloat16
                rounded = Repeated(weight)(state, bias)
            assert rounded.dtype == torch.bfloat16
            torch.testing.assert_close(rounded.float(), convolve(state, bias), rtol=0.05, atol=0.1)
    assert (once.packed is None, convolve.packed is None) == (not torch.backends.mkldnn.is_available(), True)
