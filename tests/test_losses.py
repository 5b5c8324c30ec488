import math

import numpy as np
import pytest
import torch
import xarray as xr
from scores.continuous import quantile_score
from scores.probability import crps_for_ensemble

from pipeline.losses import LOSSES, OF_MEMBERS, almost_fair_crps, pinball


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


def members_and_target() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    forecast, target = torch.randn(3, 7, 2, 5, generator=draws), torch.randn(3, 2, 5, generator=draws)
    target[1, 0, 2] = math.nan
    return forecast.double(), target.double(), torch.isfinite(target)


def test_almost_fair_crps_by_hand() -> None:
    forecast, target = torch.tensor([[1.0, 4.0]]), torch.tensor([2.0])
    valid = torch.ones(1, dtype=torch.bool)
    # mean distance to the target 1.5, between the two members 3: CRPS 1.5 - 3/4, fair CRPS 1.5 - 3/2
    assert almost_fair_crps(forecast, target, valid, alpha=0).item() == pytest.approx(0.75)
    assert almost_fair_crps(forecast, target, valid, alpha=1).item() == pytest.approx(0.0)
    assert almost_fair_crps(forecast, target, valid).item() == pytest.approx(0.05 * 0.75, rel=1e-4)


def test_almost_fair_crps_by_two_loops() -> None:
    forecast, target, valid = members_and_target()
    total = 0.0
    for i, j, k in valid.nonzero().tolist():
        x, y = forecast[i, :, j, k].tolist(), target[i, j, k].item()
        for a in range(7):
            for b in range(7):
                if a != b:
                    total += (abs(x[a] - y) + abs(x[b] - y) - (1 - 0.05 / 7) * abs(x[a] - x[b])) / (2 * 7 * 6)
    assert almost_fair_crps(forecast, target, valid).item() == pytest.approx(total / valid.sum().item(), rel=1e-9)


@pytest.mark.parametrize(("alpha", "method"), [(1, "fair"), (0, "ecdf")])
def test_the_crps_is_that_of_scores(alpha: float, method: str) -> None:
    forecast, target, valid = members_and_target()
    expected = crps_for_ensemble(
        xr.DataArray(forecast.numpy(), dims=("b", "member", "y", "x")),
        xr.DataArray(target.numpy(), dims=("b", "y", "x")),
        "member",
        method=method,
    )
    assert almost_fair_crps(forecast, target, valid, alpha).item() == pytest.approx(expected.item(), rel=1e-9)


def test_pinball_is_twice_that_of_scores() -> None:
    forecast, target, valid = members_and_target()
    dims = ("b", "y", "x")
    expected = [
        quantile_score(
            xr.DataArray(forecast[:, i].numpy(), dims=dims), xr.DataArray(target.numpy(), dims=dims), (i + 0.5) / 7
        ).item()
        for i in range(7)
    ]
    assert pinball(forecast, target, valid).item() == pytest.approx(2 * np.mean(expected), rel=1e-9)


def test_pinball_finds_the_quantiles() -> None:
    target = torch.linspace(0, 1, 1001)
    forecast = torch.full((1, 4), 0.5, requires_grad=True)
    optimiser = torch.optim.Adam([forecast], lr=0.01)
    for _ in range(300):
        optimiser.zero_grad()
        pinball(forecast.expand(1001, 4), target, torch.isfinite(target)).backward()
        optimiser.step()
    assert forecast[0].tolist() == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8], abs=0.02)


@pytest.mark.parametrize("name", sorted(OF_MEMBERS))
def test_members_of_missing_cells_carry_no_gradient(name: str) -> None:
    forecast, target, valid = members_and_target()
    forecast.requires_grad_()
    OF_MEMBERS[name](forecast, target, valid).backward()
    assert forecast.grad is not None
    gone = ~valid[:, None].expand_as(forecast)
    assert (forecast.grad[gone] == 0).all()
    assert forecast.grad.isfinite().all()
    assert (forecast.grad[~gone] != 0).any()
    nothing = OF_MEMBERS[name](forecast, torch.full_like(target, math.nan), torch.zeros_like(valid))
    assert nothing.item() == 0
