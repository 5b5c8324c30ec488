"""A ConvLSTM learns moving digits, drawn as on a pocket calculator, and forecasts those it has never seen."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from fieldcast import models
from fieldcast.pipeline.sources.moving_mnist import DIGIT, draw_sequence
from tests.campaign import size

HISTORY, HORIZON = 5, 5
STEPS = size(200, 400)
BARS = ((4, 8, 4, 12), (4, 6, 12, 4), (4, 18, 12, 4), (12, 8, 4, 12), (14, 6, 12, 4), (14, 18, 12, 4), (22, 8, 4, 12))
LIT = ("012456", "25", "02346", "02356", "1235", "01356", "013456", "025", "0123456", "012356")  # bars of each digit


def glyphs(numbers):
    """Pictures (n, 28, 28) of digits made of bars (top, left, height, width)."""
    pictures = np.zeros((len(numbers), DIGIT, DIGIT), np.uint8)
    for picture, number in zip(pictures, numbers, strict=True):
        for top, left, height, width in (BARS[int(bar)] for bar in LIT[number]):
            picture[top : top + height, left : left + width] = 255
    return pictures


def films(count, numbers, *seed):
    """Films (b, t, 1, 32, 32) of two such digits that drift and bounce."""
    draws = np.random.default_rng(seed)
    drawn = [draw_sequence(draws, glyphs(numbers), HISTORY + HORIZON, 2) for _ in range(count)]
    return functional.avg_pool2d(torch.from_numpy(np.stack(drawn)), 2)[:, :, None]


def error(forecast, target):
    """Mean squared error at each lead."""
    return (forecast - target).square().mean(dim=(0, 2, 3, 4))


@pytest.mark.slow
def test_beats_persistence_and_climatology_at_every_lead():
    """Measured after 400 steps: at most 0.49 of the error of persistence, 0.52 to 0.75 of that of climatology."""
    torch.manual_seed(0)
    options = models.OPTIONS["recurrent"].model_validate({"hidden": [24, 24], "kernel": 3, "patch": 4})
    model = models.build(
        "recurrent", options, channels_in=1, channels_out=1, history=HISTORY, horizon=HORIZON, step_minutes=5
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=STEPS, pct_start=0.2)
    for step in range(STEPS):
        history, target = films(8, range(7), 0, step).split([HISTORY, HORIZON], dim=1)
        optimiser.zero_grad()
        error(model(history), target).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    history, target = films(64, range(7, 10), 1).split([HISTORY, HORIZON], dim=1)
    climatology = films(200, range(7), 2).mean(dim=(0, 1))
    with torch.no_grad():
        learned = error(model.eval()(history), target)
    assert (learned < 0.7 * error(history[:, -1:], target)).all()
    assert (learned < 0.9 * error(climatology, target)).all()
