import math

import pytest
import torch

from pipeline.losses import LOSSES


@pytest.mark.parametrize(("name", "expected"), [("mse", (1 + 9) / 2), ("mae", (1 + 3) / 2), ("huber", (0.5 + 2.5) / 2)])
def test_by_hand_over_valid_cells(name: str, expected: float) -> None:
    forecast = torch.tensor([1.0, 5.0, 100.0])
    target = torch.tensor([2.0, 2.0, math.nan])
    assert LOSSES[name](forecast, target, torch.isfinite(target)).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_missing_cells_carry_no_gradient(name: str) -> None:
    forecast = torch.tensor([1.0, 5.0], requires_grad=True)
    target = torch.tensor([math.nan, 2.0])
    LOSSES[name](forecast, target, torch.isfinite(target)).backward()
    assert forecast.grad is not None
    assert forecast.grad[0] == 0
    assert forecast.grad[1] != 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_nothing_valid_is_zero_with_zero_gradient(name: str) -> None:
    forecast = torch.ones(3, requires_grad=True)
    loss = LOSSES[name](forecast, torch.full((3,), math.nan), torch.zeros(3, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert forecast.grad is not None
    assert not forecast.grad.any()
