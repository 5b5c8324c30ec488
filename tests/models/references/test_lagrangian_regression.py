"""Regression in the moving frame: its fit by hand, its gaps, and what it is without any."""

import numpy as np
import pytest
import torch

from fieldcast.models.advection.forecast import forecast as advection
from fieldcast.models.lagrangian_regression import forecast as regression
from fieldcast.models.lagrangian_regression.options import LagrangianRegressionOptions
from fieldcast.models.layers.reference import Case, Training
from tests.models.references.test_references import blobs

NAN = np.nan
STEP = np.timedelta64(5, "m")
OPTIONS = LagrangianRegressionOptions(scales=(0, 2, 5), transform="identity")
RAIN = LagrangianRegressionOptions(scales=(0, 2, 5))


def histories(count, channels=1):
    """Return histories (b, 4, c, 33, 41) of cells that move, each sample and channel in its own way."""
    draws = np.random.default_rng(3)
    samples = [
        [blobs(33, 41, 4, velocity=draws.uniform(-2, 2, 2), background=0.2)[0, :, 0] for _ in range(channels)]
        for _ in range(count)
    ]
    return np.array(samples, dtype=np.float32).swapaxes(1, 2)


def case(weights, horizon, options=OPTIONS):
    return Case(np.zeros(1, "datetime64[ns]"), horizon, STEP, 1.0, options, {"weights": weights})


def fitted(history, target, block=32, options=OPTIONS):
    times = np.zeros(len(history), "datetime64[ns]")
    pieces = [slice(start, start + block) for start in range(0, len(history), block)]
    blocks = [(history[piece], target[piece], times[piece]) for piece in pieces]
    climatology = np.zeros((1, *target.shape[2:]), np.float32)
    return regression.fit(Training(options, climatology, target.shape[1], STEP, blocks))[0]["weights"]


@pytest.fixture(scope="module")
def known():
    """Return histories, weights (3 leads, 2 channels, 4) and the targets that they give."""
    draws = np.random.default_rng(0)
    history = histories(6, channels=2)
    weights = draws.uniform(-1, 1, (3, 2, 4)).astype(np.float32)
    return history, weights, regression.members(history, case(weights, 3))[:, 0]


def test_the_fit_finds_the_weights_that_made_the_targets(known):
    history, weights, target = known
    np.testing.assert_allclose(fitted(history, target), weights, atol=2e-3)


def test_rain_has_no_constant_and_dry_stays_dry(known):
    history, weights, _ = known
    weights = weights.copy()
    weights[..., -1] = 0
    target = regression.members(history, case(weights, 3, RAIN))[:, 0]
    np.testing.assert_allclose(fitted(history, target, options=RAIN), weights, atol=2e-3)
    drizzle = fitted(history, target + 0.5, options=RAIN)
    assert (drizzle[..., -1] == 0).all()
    assert (regression.members(np.zeros_like(history), case(drizzle, 3, RAIN)) == 0).all()


def test_the_fit_does_not_depend_on_blocks_and_gaps(known, monkeypatch):
    history, weights, target = known
    target = target.copy()
    target[:, 1, :, 5:20, 7:30] = NAN
    target[2] = NAN
    monkeypatch.setattr(regression, "BYTES", 1)  # one sample at once
    np.testing.assert_allclose(fitted(history, target, block=4), weights, atol=2e-3)


def test_a_lead_that_was_never_observed_has_no_weights(known):
    history, weights, target = known
    target = target.copy()
    target[:, 2] = NAN
    found = fitted(history, target)
    assert (found[2] == 0).all()
    np.testing.assert_allclose(found[:2], weights[:2], atol=2e-3)


def test_with_all_weight_on_the_field_itself_it_is_advection():
    history = histories(2)
    history[0, -1, 0, 10:14, 3:9] = NAN  # seen before
    history[0, :, 0, 20, 20] = NAN  # never seen
    weights = np.zeros((4, 1, 4), np.float32)
    weights[..., 0] = 1
    result = regression.members(history, case(weights, 4, RAIN))
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result[:, 0], advection(history, 4))


def test_quantiles_are_members_for_the_calibration_to_part():
    options = LagrangianRegressionOptions(scales=(0, 2, 5), output="quantiles")
    weights = np.full((2, 1, 4), 0.25, np.float32)
    members = regression.members(histories(2), case(weights, 2, options))
    assert members.shape == (2, 10, 2, 1, 33, 41)
    assert (members == members[:, :1]).all()


def test_scales_smooth_and_keep_the_mean():
    field = histories(1)[:, -1, 0]
    still = np.repeat(field[:, None], 4, axis=1)
    maps = regression.predictors(field, still, 1, OPTIONS)[0, 0]
    spread = maps[:3].std(dim=(-2, -1))
    assert spread[0] > spread[1] > spread[2] > 0
    assert torch.allclose(maps[3], torch.ones(33, 41))
    torch.testing.assert_close(maps[0], torch.from_numpy(field[0]), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("scales", [(), (-1.0,), (float("nan"),)])
def test_scales_that_cannot_be_are_refused(scales):
    with pytest.raises(ValueError, match="scales"):
        LagrangianRegressionOptions(scales=scales)
