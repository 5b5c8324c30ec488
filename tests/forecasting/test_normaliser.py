import math

import numpy as np
import pytest
import torch

from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.datasets.transforms import inverse_transform, transform
from fieldcast.pipeline.forecasting.normaliser import Normaliser


@pytest.mark.parametrize("kind", ["identity", "log", "db"])
def test_transform_and_back(kind: str) -> None:
    values = torch.tensor([0.5, 1.0, 7.0, 80.0, math.nan])
    again = inverse_transform(transform(values, kind, 0.5), kind, 0.5)
    torch.testing.assert_close(again[1:], values[1:], equal_nan=True)


def test_transforms_by_hand() -> None:
    assert transform(torch.tensor(1.0), "log", 0.5).item() == pytest.approx(math.log(3))
    assert transform(torch.tensor(50.0), "db", 0.5).item() == pytest.approx(20)
    assert transform(torch.tensor(0.1), "db", 0.5).item() == 0
    assert inverse_transform(torch.tensor(-0.3), "db", 0.5).item() == 0  # dry
    assert inverse_transform(torch.tensor(-0.3), "log", 0.5).item() == 0  # rain is never negative


def channel(low: float | None = None, high: float | None = None) -> Channel:
    return Channel("t2m", "K", valid_min=low, valid_max=high)


def test_one_mean() -> None:
    normaliser = Normaliser(np.full((1, 2, 1, 1), 3.0), np.array([2.0, 4.0]), [channel(0.0), channel()])
    fields = torch.full((1, 1, 2, 2, 3), 7.0)
    seconds, origin = torch.tensor([[86_399]]), torch.tensor([[0, 0]])
    z = normaliser.normalise(fields, seconds, origin)
    assert z[0, 0, 0, 0, 0] == 2
    assert z[0, 0, 1, 0, 0] == 1
    torch.testing.assert_close(normaliser.restore(z, seconds, origin), fields)
    low = normaliser.restore(torch.full((1, 1, 2, 2, 3), -9.0), seconds, origin)
    assert low[0, 0, 0].min() == 0  # clipped to the valid range
    assert low[0, 0, 1].min() == -33


def test_baseline_follows_the_hour_and_the_crop() -> None:
    maps = np.arange(24 * 5 * 7, dtype=np.float64).reshape(24, 1, 5, 7)
    normaliser = Normaliser(maps, np.array([1.0]), [channel()])
    seconds = torch.tensor([[3600 * 5, 3600 * 6], [3600 * 47, 0]])
    origin = torch.tensor([[1, 2], [0, 3]])
    z = normaliser.normalise(torch.zeros(2, 2, 1, 2, 3), seconds, origin)
    np.testing.assert_array_equal(-z[0, 1, 0].numpy(), maps[6, 0, 1:3, 2:5])
    np.testing.assert_array_equal(-z[1, 0, 0].numpy(), maps[23, 0, 0:2, 3:6])
    torch.testing.assert_close(normaliser.restore(z, seconds, origin), torch.zeros(2, 2, 1, 2, 3))


def test_statistics_travel_with_the_state() -> None:
    normaliser = Normaliser(np.full((1, 1, 1, 1), 3.0), np.array([2.0]), [channel()])
    assert sorted(normaliser.state_dict()) == ["baseline", "scale"]
