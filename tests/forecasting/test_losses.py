import math
from itertools import product

import numpy as np
import pytest
import torch
import xarray as xr
from scores.continuous import quantile_score
from scores.probability import crps_for_ensemble

from fieldcast.pipeline.config.training import Train
from fieldcast.pipeline.datasets.transforms import inverse_transform, transform
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting.losses import (
    LOSSES,
    OF_MEMBERS,
    almost_fair_crps,
    balanced,
    choose,
    lead_weights,
    mae,
    mse,
    pinball,
    rain_weights,
    spectral,
)

EQUAL = torch.ones(1)
SQUARE, ABSOLUTE = (1 + 9) / 2, (1 + 3) / 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [("mse", SQUARE), ("mae", ABSOLUTE), ("huber", (0.5 + 2.5) / 2), ("balanced", SQUARE + ABSOLUTE)],
)
def test_by_hand_over_valid_cells(name: str, expected: float) -> None:
    forecast = torch.tensor([1.0, 5.0, 100.0])
    target = torch.tensor([2.0, 2.0, math.nan])
    assert LOSSES[name](forecast, target, EQUAL).item() == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_missing_cells_carry_no_gradient(name: str) -> None:
    forecast = torch.tensor([[1.0, 5.0], [7.0, 3.0]], requires_grad=True)
    target = torch.tensor([[math.nan, 2.0], [5.0, 3.5]])
    LOSSES[name](forecast, target, EQUAL).backward()
    assert forecast.grad is not None
    assert forecast.grad[0, 0] == 0
    assert (forecast.grad.flatten()[1:] != 0).all()


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_nothing_valid_is_zero_with_zero_gradient(name: str) -> None:
    forecast = torch.ones(3, 2, requires_grad=True)
    loss = LOSSES[name](forecast, torch.full((3, 2), math.nan), EQUAL)
    loss.backward()
    assert loss.item() == 0
    assert forecast.grad is not None
    assert not forecast.grad.any()


@pytest.mark.parametrize("name", sorted(LOSSES | OF_MEMBERS))
def test_weights_of_leads_multiply_the_errors_of_each(name: str) -> None:
    draws = torch.Generator().manual_seed(2)
    members = (5,) if name in OF_MEMBERS else ()
    forecast = torch.randn(2, *members, 3, 1, 5, 7, generator=draws).double()
    target = torch.randn(2, 3, 1, 5, 7, generator=draws).double()
    target[0, 1, 0, 2] = math.nan
    loss = (LOSSES | OF_MEMBERS)[name]
    alone = [loss(forecast, target, torch.eye(3)[k].view(3, 1, 1, 1)).item() for k in range(3)]
    weighted = loss(forecast, target, torch.tensor([1.0, 2.0, 7.0]).view(3, 1, 1, 1)).item()
    assert min(alone) > 0
    assert weighted == pytest.approx(alone[0] + 2 * alone[1] + 7 * alone[2], rel=1e-6)


def test_lead_weights_by_hand() -> None:
    assert lead_weights("same", 5.0, 3).flatten().tolist() == [1, 1, 1]
    assert lead_weights("linear", 5.0, 3).flatten().tolist() == pytest.approx([1 / 3, 1, 5 / 3])
    assert lead_weights("exponential", 4.0, 3).flatten().tolist() == pytest.approx([3 / 7, 6 / 7, 12 / 7])
    assert lead_weights("linear", 5.0, 1).flatten().tolist() == [1]
    assert lead_weights("linear", 5.0, 3).shape == (3, 1, 1, 1)


def test_rain_weights_of_the_published_bins() -> None:
    rates = torch.tensor([0.0, 0.4, 0.5, 1.9, 2, 5, 10, 29.9, 30, 60, math.nan])
    assert rain_weights(rates).tolist() == [1, 1, 1, 1, 2, 5, 10, 10, 30, 30, 0]


def test_balanced_is_the_published_sum_over_the_number_of_cells() -> None:
    """B-MSE + B-MAE as published: summed over a frame's cells, mean over sequences and leads."""
    draws = np.random.default_rng(3)
    observed = draws.gamma(0.4, 15.0, size=(2, 3, 1, 5, 7))
    observed[draws.random(observed.shape) < 0.2] = math.nan
    forecast = draws.gamma(0.4, 15.0, size=observed.shape)
    total = 0.0
    for index in product(*map(range, observed.shape)):
        if np.isfinite(observed[index]):
            bins = zip((30, 10, 5, 2, 0.5, 0), (30, 10, 5, 2, 1, 1), strict=True)
            weight = next(weight for start, weight in bins if observed[index] >= start)
            error = observed[index] - forecast[index]
            total += weight * (error**2 + abs(error))
    published = total / (2 * 3)
    target = torch.from_numpy(observed)
    loss = balanced(torch.from_numpy(forecast), target, rain_weights(target))
    cells = np.isfinite(observed).sum() / (2 * 3)  # a frame
    assert loss.item() * cells == pytest.approx(published, rel=1e-9)


def test_decibels_of_rain_are_linear_in_the_published_pixels() -> None:
    """p = (dBZ + 10) / 70 with Z = 58.53 R^1.56: what `db` gives, but for a factor and an offset."""
    floor = 0.1
    rain = torch.tensor([0.1, 0.5, 2.0, 5.0, 10.0, 30.0, 80.0], dtype=torch.float64)
    pixels = (10 * torch.log10(58.53 * rain**1.56) + 10) / 70
    offset = (10 * math.log10(58.53 * floor**1.56) + 10) / 70
    torch.testing.assert_close(1.56 / 70 * transform(rain, "db", floor) + offset, pixels, rtol=0, atol=1e-6)
    dbz = 70 * pixels - 10
    torch.testing.assert_close((10 ** (dbz / 10) / 58.53) ** (1 / 1.56), rain, rtol=1e-6, atol=0)
    again = inverse_transform(transform(rain, "db", floor), "db", floor)
    torch.testing.assert_close(again[1:], rain[1:], rtol=1e-6, atol=0)
    assert inverse_transform(transform(torch.zeros(1), "db", floor), "db", floor).item() == 0


def waves(cells: tuple[int, int], fields: torch.Tensor) -> torch.Tensor:
    """Amplitudes of a field's waves by the definition of the Fourier transform."""
    h, w = cells
    rows, columns = torch.arange(h, dtype=torch.float64), torch.arange(w, dtype=torch.float64)
    found = torch.zeros(cells, dtype=torch.float64)
    for k, n in product(range(h), range(w)):
        phase = 2 * math.pi * (k * rows[:, None] / h + n * columns[None, :] / w)
        found[k, n] = torch.hypot((fields * phase.cos()).sum(), (fields * phase.sin()).sum()) / math.sqrt(h * w)
    return found


def test_spectral_by_the_definition_of_the_transform() -> None:
    draws = torch.Generator().manual_seed(4)
    forecast, target = (torch.randn(3, 5, generator=draws).double() for _ in range(2))
    target[1, 2] = math.nan
    filled = torch.where(target.isnan(), 0.0, target)
    seen = torch.where(target.isnan(), 0.0, forecast)
    mismatch = ((waves((3, 5), seen) - waves((3, 5), filled)) ** 2).sum() / 14
    expected = mse(forecast, target, EQUAL) + 0.3 * mismatch
    assert spectral(forecast, target, EQUAL, weight=0.3).item() == pytest.approx(expected.item(), rel=1e-6)


def test_spectral_asks_for_detail_not_for_its_place() -> None:
    draws = torch.Generator().manual_seed(5)
    target = torch.randn(2, 3, 1, 8, 9, generator=draws)
    moved, smooth = target.roll(3, dims=-1), torch.zeros_like(target)
    assert spectral(moved, target, EQUAL).item() == pytest.approx(mse(moved, target, EQUAL).item(), rel=1e-5)
    assert spectral(smooth, target, EQUAL).item() == pytest.approx(2 * mse(smooth, target, EQUAL).item(), rel=1e-5)
    forecast = torch.randn(2, 3, 1, 8, 9, generator=draws)
    extra = spectral(forecast, target, EQUAL) - mse(forecast, target, EQUAL)
    assert 0 < extra < mse(forecast, target, EQUAL)


def test_options_reach_the_loss_of_a_model_without_members() -> None:
    forecast, target = torch.tensor([[5.0, 0.0]]), torch.tensor([[2.0, 0.0]])
    assert choose(Train(epochs=1, loss="huber", huber_delta=2), "point")(forecast, target, EQUAL).item() == 2
    heavy = choose(Train(epochs=1, loss="spectral", spectral_weight=3), "point")(forecast, target, EQUAL)
    assert heavy.item() == pytest.approx(4 * mse(forecast, target, EQUAL).item())
    assert choose(Train(epochs=1, loss="mae"), "point") is mae
    assert choose(Train(epochs=1, loss="mae"), "quantiles") is pinball


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"huber_delta": 2.0}, "huber_delta has no effect with loss mse"),
        ({"loss": "balanced", "spectral_weight": 2.0}, "spectral_weight has no effect with loss balanced"),
        ({"last_lead_weight": 2.0}, "last_lead_weight has no effect with lead_weights same"),
    ],
)
def test_options_of_another_loss_are_refused(options: dict[str, object], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        Train(epochs=1, **options)


def test_balanced_needs_rain() -> None:
    Train(epochs=1, loss="balanced").check_units(["K", "mm h-1"])
    Train(epochs=1, loss="mse").check_units(["K"])
    with pytest.raises(InputError, match="balanced weighs rain rates in mm h-1, targets are in K, m s-1"):
        Train(epochs=1, loss="balanced").check_units(["K", "m s-1"])


def top_csi(loss: str, seed: int) -> float:
    """CSI at 30 mm/h of one convolution, trained on rain of which less than half of the logarithm can be forecast."""
    torch.manual_seed(seed)
    seen = torch.nn.functional.avg_pool2d(torch.randn(24, 1, 43, 47), 3, stride=1) * 3  # variance 1
    rain = torch.exp(1.0 + 1.1 * seen[:, :, 1:-1, 1:-1] + 1.2 * torch.randn(24, 1, 39, 43))
    target = transform(rain, "db", 0.1) / 10
    layer = torch.nn.Conv2d(1, 1, 3)
    optimiser = torch.optim.Adam(layer.parameters(), lr=0.05)
    weights = rain_weights(rain[:16]) if loss == "balanced" else EQUAL
    for _ in range(150):
        optimiser.zero_grad()
        LOSSES[loss](layer(seen[:16]), target[:16], weights).backward()
        optimiser.step()
    forecast = layer(seen[16:]) >= transform(torch.tensor(30.0), "db", 0.1) / 10
    event = rain[16:] >= 30
    return ((forecast & event).sum() / (forecast | event).sum()).item()


@pytest.mark.slow
def test_balanced_forecasts_heavy_rain_that_the_squared_error_loses() -> None:
    csi = {loss: np.mean([top_csi(loss, seed) for seed in range(3)]) for loss in ("mse", "balanced")}
    assert csi["balanced"] > 1.5 * csi["mse"] > 0


def members_and_target() -> tuple[torch.Tensor, torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    forecast, target = torch.randn(3, 7, 2, 5, generator=draws), torch.randn(3, 2, 5, generator=draws)
    target[1, 0, 2] = math.nan
    return forecast.double(), target.double()


def test_almost_fair_crps_by_hand() -> None:
    forecast, target = torch.tensor([[1.0, 4.0]]), torch.tensor([2.0])
    # mean distance to the target 1.5, between the two members 3: CRPS 1.5 - 3/4, fair CRPS 1.5 - 3/2
    assert almost_fair_crps(forecast, target, EQUAL, alpha=0).item() == pytest.approx(0.75)
    assert almost_fair_crps(forecast, target, EQUAL, alpha=1).item() == pytest.approx(0.0)
    assert almost_fair_crps(forecast, target, EQUAL).item() == pytest.approx(0.05 * 0.75, rel=1e-4)


def test_almost_fair_crps_by_two_loops() -> None:
    forecast, target = members_and_target()
    total = 0.0
    for i, j, k in target.isfinite().nonzero().tolist():
        x, y = forecast[i, :, j, k].tolist(), target[i, j, k].item()
        for a in range(7):
            for b in range(7):
                if a != b:
                    total += (abs(x[a] - y) + abs(x[b] - y) - (1 - 0.05 / 7) * abs(x[a] - x[b])) / (2 * 7 * 6)
    assert almost_fair_crps(forecast, target, EQUAL).item() == pytest.approx(
        total / target.isfinite().sum().item(), rel=1e-9
    )


@pytest.mark.parametrize(("alpha", "method"), [(1, "fair"), (0, "ecdf")])
def test_the_crps_is_that_of_scores(alpha: float, method: str) -> None:
    forecast, target = members_and_target()
    expected = crps_for_ensemble(
        xr.DataArray(forecast.numpy(), dims=("b", "member", "y", "x")),
        xr.DataArray(target.numpy(), dims=("b", "y", "x")),
        "member",
        method=method,
    )
    assert almost_fair_crps(forecast, target, EQUAL, alpha).item() == pytest.approx(expected.item(), rel=1e-9)


def test_pinball_is_twice_that_of_scores() -> None:
    forecast, target = members_and_target()
    dims = ("b", "y", "x")
    expected = [
        quantile_score(
            xr.DataArray(forecast[:, i].numpy(), dims=dims), xr.DataArray(target.numpy(), dims=dims), (i + 0.5) / 7
        ).item()
        for i in range(7)
    ]
    assert pinball(forecast, target, EQUAL).item() == pytest.approx(2 * np.mean(expected), rel=1e-9)


def test_pinball_finds_the_quantiles() -> None:
    target = torch.linspace(0, 1, 1001)
    forecast = torch.full((1, 4), 0.5, requires_grad=True)
    optimiser = torch.optim.Adam([forecast], lr=0.01)
    for _ in range(300):
        optimiser.zero_grad()
        pinball(forecast.expand(1001, 4), target, EQUAL).backward()
        optimiser.step()
    assert forecast[0].tolist() == pytest.approx([1 / 8, 3 / 8, 5 / 8, 7 / 8], abs=0.02)


@pytest.mark.parametrize("name", sorted(OF_MEMBERS))
def test_members_of_missing_cells_carry_no_gradient(name: str) -> None:
    forecast, target = members_and_target()
    forecast.requires_grad_()
    OF_MEMBERS[name](forecast, target, EQUAL).backward()
    assert forecast.grad is not None
    gone = target.isnan()[:, None].expand_as(forecast)
    assert (forecast.grad[gone] == 0).all()
    assert forecast.grad.isfinite().all()
    assert (forecast.grad[~gone] != 0).any()
    nothing = OF_MEMBERS[name](forecast, torch.full_like(target, math.nan), EQUAL)
    assert nothing.item() == 0
