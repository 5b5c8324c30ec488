"""Attention in place of recurrence: what is far back in time is found again, and its gradient does not vanish."""

import pytest
import torch
from torch import nn

from fieldcast.models.recurrent.model import CELLS
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.recurrent.unroll import unroll
from fieldcast.models.video_transformer.attention.exact.axes import AlongAxes
from tests.campaign import size

HIDDEN = 8


def make_cell(kind, seed, **changes):
    torch.manual_seed(seed)
    return CELLS[kind](1, HIDDEN, RecurrentOptions(cell=kind, hidden=(HIDDEN,), **changes))


def recall_error(kind, delay, steps, seed):
    """Mean squared error, of noise with variance 1, after learning to give the field that was the input `delay` ago."""
    cell, readout = make_cell(kind, seed), nn.Conv2d(HIDDEN, 1, 1)
    parameters = [*cell.parameters(), *readout.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=2e-2)
    draws = torch.Generator().manual_seed(seed + 1)
    errors = []
    for _ in range(steps):
        fields = torch.randn(delay + 4, 1, 1, 16, 16, generator=draws)
        states, _ = unroll(cell, fields, None, delay + 4)
        error = (readout(states[delay:, 0]) - fields[:4, 0]).square().mean()
        optimiser.zero_grad()
        error.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        errors.append(error.item())
    return sum(errors[-20:]) / 20


@pytest.mark.slow
def test_attention_recalls_what_a_convlstm_has_forgotten():
    """Two seeds measured 0.9 and 1.0 % of the error of the ConvLSTM, which stays at 0.95 and 0.77 of the variance."""
    errors = {
        kind: sum(recall_error(kind, 16, 150, seed) for seed in range(size(1, 2))) for kind in ("attention", "convlstm")
    }
    assert errors["attention"] < 0.1 * errors["convlstm"]


def gradient_of_first(kind, steps, **changes):
    """Size of the gradient of the last hidden state in the first input."""
    cell = make_cell(kind, 0, **changes).double()
    fields = torch.randn(steps, 3, 1, 7, 5, dtype=torch.float64, requires_grad=True)
    states, _ = unroll(cell, fields, None, steps)
    (gradient,) = torch.autograd.grad((states[-1] * torch.randn_like(states[-1])).sum(), fields)
    return gradient[0].norm().item()


def test_the_first_frame_is_felt_the_more_with_attention_the_longer_the_history():
    attention, lstm = (
        [gradient_of_first(kind, steps, **changes) for steps in (8, 16, 32, 64)]
        for kind, changes in (("attention", {"memory": 64}), ("convlstm", {}))
    )
    ratios = [one / other for one, other in zip(attention, lstm, strict=True)]
    assert ratios == sorted(ratios)
    assert ratios[-1] > 1000 * ratios[0]
    assert attention[-1] > 0.1 * attention[0]  # as one of 64 instead of 8 that are attended to


def test_operations_in_a_row_do_not_grow_with_the_history_in_attention_alone(count_operations):
    """Attention over all steps at once against a ConvLSTM, at 8, 16 and 32 steps."""
    attention, cell = AlongAxes(HIDDEN, 2, "T"), make_cell("convlstm", 0)
    grids = [torch.zeros(1, steps, 3, 5, HIDDEN) for steps in (8, 16, 32)]
    assert len({count_operations(attention, grid) for grid in grids}) == 1
    counts = [count_operations(unroll, cell, torch.zeros(steps, 1, 1, 3, 5), None, steps) for steps in (8, 16, 32)]
    assert counts[2] - counts[1] == 2 * (counts[1] - counts[0]) > 0
