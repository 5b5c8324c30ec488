import math

import numpy as np
import pytest
import torch
from torch import nn

import models
from models.convlstm.cell import ConvLSTMLayer


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def step_by_scalars(x, hidden, cell, layer):
    """Equation 3 of Shi et al. 2015, one number at a time."""
    wx, wh = layer.input_to_state.weight.detach().numpy(), layer.state_to_state.weight.detach().numpy()
    bias, peephole = layer.bias.detach().numpy(), layer.peephole.detach().numpy()[:, :, 0, 0]
    d, h, w = hidden.shape
    k = wx.shape[-1]

    def convolved(weights, field, out, y, x_):
        total = 0.0
        for c in range(field.shape[0]):
            for dy in range(k):
                for dx in range(k):
                    yy, xx = y + dy - k // 2, x_ + dx - k // 2
                    if 0 <= yy < h and 0 <= xx < w:
                        total += weights[out, c, dy, dx] * field[c, yy, xx]
        return total

    new_hidden, new_cell = np.zeros_like(hidden), np.zeros_like(cell)
    for c in range(d):
        for y in range(h):
            for x_ in range(w):
                i, f, g, o = (
                    convolved(wx, x, q * d + c, y, x_) + convolved(wh, hidden, q * d + c, y, x_) + bias[q * d + c]
                    for q in range(4)
                )
                old = cell[c, y, x_]
                new = sigmoid(f + peephole[1, c] * old) * old + sigmoid(i + peephole[0, c] * old) * math.tanh(g)
                new_cell[c, y, x_] = new
                new_hidden[c, y, x_] = sigmoid(o + peephole[2, c] * new) * math.tanh(new)
    return new_hidden, new_cell


def test_layer_equals_scalars(shaken):
    layer = shaken(ConvLSTMLayer(2, 3, 3)).double()
    inputs = torch.randn(3, 1, 2, 5, 7, dtype=torch.float64)
    states, (_, last_cell) = layer(inputs, None, 3)
    hidden = cell = np.zeros((3, 5, 7))
    for step in range(3):
        hidden, cell = step_by_scalars(inputs[step, 0].numpy(), hidden, cell, layer)
        np.testing.assert_allclose(states[step, 0].detach().numpy(), hidden, rtol=0, atol=1e-10)
    np.testing.assert_allclose(last_cell[0].detach().numpy(), cell, rtol=0, atol=1e-10)


def test_one_cell_without_peepholes_is_an_lstm_cell(shaken):
    layer, cell = shaken(ConvLSTMLayer(5, 3, 1)), nn.LSTMCell(5, 3)
    with torch.no_grad():
        layer.peephole.zero_()
        cell.weight_ih.copy_(
            layer.input_to_state.weight[:, :, 0, 0]
        )  # both in the order input, forget, candidate, output
        cell.weight_hh.copy_(layer.state_to_state.weight[:, :, 0, 0])
        cell.bias_ih.copy_(layer.bias)
        cell.bias_hh.zero_()
    inputs = torch.randn(4, 2, 5, 1, 1)
    state = torch.randn(2, 3), torch.randn(2, 3)
    states, _ = layer(inputs, tuple(s[:, :, None, None] for s in state), 4)
    for step in range(4):
        state = cell(inputs[step, :, :, 0, 0], state)
        torch.testing.assert_close(states[step, :, :, 0, 0], state[0], rtol=0, atol=1e-6)


def test_without_input_is_with_zero_input(shaken):
    layer = shaken(ConvLSTMLayer(2, 3, 3))
    state = torch.randn(1, 3, 5, 7), torch.randn(1, 3, 5, 7)
    driven, _ = layer(torch.zeros(4, 1, 2, 5, 7), state, 4)
    free, _ = layer(None, state, 4)
    torch.testing.assert_close(driven, free)


@pytest.mark.parametrize(
    ("hidden", "published"), [([256], 13_524_496), ([128, 128], 10_042_896), ([128, 64, 64], 7_585_296)]
)
def test_published_parameter_counts(hidden, published):
    options = models.OPTIONS["convlstm"].model_validate({"hidden": hidden, "kernel": 5, "patch": 4})
    model = models.build("convlstm", options, channels_in=1, channels_out=1, history=10, horizon=10, step_minutes=1)
    mask = 5 * 5 * 16 * 4 * hidden[0]  # the published model has no mask channel
    base = 10 * 10  # nor a base that mixes the history
    assert sum(p.numel() for p in model.parameters()) == published + mask + base
