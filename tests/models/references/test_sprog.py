"""S-PROG: what it promises on rain, and on fields that are hardly any."""

import numpy as np
import pytest

from fieldcast.models.advection.forecast import forecast as advection
from fieldcast.models.layers.cascade import load_pysteps
from fieldcast.models.layers.reference import Case
from fieldcast.models.persistence.forecast import forecast as persistence
from fieldcast.models.sprog import forecast as module
from fieldcast.models.sprog.options import SprogOptions
from tests.models.references.showers import ODD, WET, rain

NAN = np.nan
load_pysteps("sprog")  # prints and threads of its import are not these tests' business


def sprog(history, horizon=3, **options):
    return module.forecast(history, horizon, SprogOptions(**options))


def test_it_beats_persistence_and_is_one_member():
    truth = rain(64, 64, 7)
    case = Case(np.zeros(1, "datetime64[ns]"), 3, np.timedelta64(5, "m"), 2.0, SprogOptions(), {})
    result = module.members(truth[:, :4], case)
    assert (result.shape, result.dtype) == ((1, 1, 3, 1, 64, 64), np.float32)
    np.testing.assert_array_equal(result[:, 0], sprog(truth[:, :4]))
    inner = (..., slice(8, -8), slice(8, -8))
    errors = [np.abs(f - truth[:, 4:])[inner].mean() for f in (result[:, 0], persistence(truth[:, :4], 3))]
    assert errors[0] < 0.8 * errors[1]


def test_fine_scales_that_are_forgotten_fade():
    draws = np.random.default_rng(0)
    speckles = rain(64, 64, 10) * np.exp(draws.normal(0, 0.7, (1, 10, 1, 64, 64))).astype(np.float32)
    history, target = speckles[:, :4], speckles[:, 4:]
    faded, moved = sprog(history, 6), advection(history, 6)
    assert np.abs(np.diff(faded[0, -1, 0])).mean() < 0.7 * np.abs(np.diff(moved[0, -1, 0])).mean()
    inner = (..., slice(16, -4), slice(16, -4))
    assert ((faded - target)[inner] ** 2).mean() < ((moved - target)[inner] ** 2).mean()


def test_the_distribution_stays():
    history = rain(64, 64, 4)
    made, latest = sprog(history, 6)[0, -1, 0], history[0, -1, 0]
    assert (made >= 1).mean() == pytest.approx((latest >= 1).mean(), rel=0.1)
    assert np.quantile(made, 0.99) == pytest.approx(np.quantile(latest, 0.99), rel=0.1)


def test_it_is_the_same_whatever_the_batch_and_numpys_generator():
    history = np.concatenate([rain(33, 49, 4), rain(33, 49, 4, seed=1)])
    np.random.seed(5)  # noqa: NPY002
    both = sprog(history)
    np.random.seed(6)  # noqa: NPY002
    np.testing.assert_array_equal(sprog(history[1:]), both[1:])


@pytest.mark.parametrize("case", ODD)
def test_without_rain_or_motion_it_is_persistence(case, capfd):
    history = ODD[case].astype(np.float32)
    np.testing.assert_array_equal(sprog(history), persistence(history, 3))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("case", WET)
def test_odd_rain_is_complete_and_quiet(case, capfd):
    result = sprog(WET[case].astype(np.float32))
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert capfd.readouterr() == ("", "")


def test_a_missing_cell_stays_missing_where_it_was_never_seen():
    history = rain(33, 49, 4)
    history[:, :, :, 3, 4] = NAN
    history[:, -1, :, 20, 20] = NAN  # seen before
    np.testing.assert_array_equal(np.isnan(sprog(history)), np.isnan(persistence(history, 3)))


def test_channels_are_apart():
    one, two = rain(33, 49, 4), rain(33, 49, 4, seed=1, velocity=(-1, 1))
    both = sprog(np.concatenate([one, two], axis=2))
    np.testing.assert_array_equal(both, np.concatenate([sprog(one), sprog(two)], axis=2))
