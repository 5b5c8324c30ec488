"""The STEPS ensemble: what it promises on rain, and on fields that are hardly any."""

import numpy as np
import pytest

from fieldcast.models.layers.cascade import load_pysteps
from fieldcast.models.persistence.forecast import forecast as persistence
from fieldcast.models.steps.forecast import forecast as steps_forecast
from fieldcast.models.steps.options import StepsOptions
from tests.models.references.showers import ODD, WET, rain

NAN = np.nan
load_pysteps("steps")  # prints and threads of its import are not these tests' business


def steps(history, horizon=3, seconds=600, members=4, **options):
    return steps_forecast(
        history,
        horizon,
        seconds=np.resize(np.asarray(seconds), len(history)),
        spacing_km=2.0,
        step_minutes=5,
        options=StepsOptions(members=members, **options),
    )


def test_members_differ_and_their_mean_beats_persistence():
    truth = rain(64, 64, 7)
    result = steps(truth[:, :4], members=10)
    assert result.shape == (1, 10, 3, 1, 64, 64)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    assert result.min() == 0
    assert len({member.tobytes() for member in result[0]}) == 10
    inner = (..., slice(8, -8), slice(8, -8))
    error, still = (
        np.abs(forecast[inner] - truth[:, 4:][inner]).mean()
        for forecast in (result.mean(axis=1), persistence(truth[:, :4], 3))
    )
    assert error < 0.8 * still


def test_spread_grows_with_lead_time():
    spread = steps(rain(64, 64, 4), horizon=6, members=10).std(axis=1).mean(axis=(0, 2, 3, 4))
    assert spread[0] < spread[2] < spread[5]


def test_the_init_time_alone_seeds_it_and_numpy_draws_on_undisturbed():
    history = np.concatenate([rain(33, 49, 4), rain(33, 49, 4, seed=1)])
    np.random.seed(5)  # noqa: NPY002
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    both = steps(history, seconds=[600, 900])
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002
    np.testing.assert_array_equal(steps(history[1:], seconds=900), both[1:])
    assert not np.array_equal(steps(history[:1], seconds=900), both[:1])
    assert np.isfinite(steps(history[:1], seconds=-900)).all()  # before 1970


@pytest.mark.parametrize("case", ODD)
def test_without_rain_or_motion_all_members_are_persistence(case, capfd):
    history = ODD[case].astype(np.float32)
    result = steps(history)
    np.testing.assert_array_equal(result, np.repeat(persistence(history, 3)[:, None], 4, axis=1))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("case", WET)
def test_odd_rain_is_complete_and_quiet(case, capfd):
    history = WET[case].astype(np.float32)
    result = steps(history)
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert capfd.readouterr() == ("", "")


def test_one_missing_cell_stays_missing_where_it_was_never_seen():
    history = rain(33, 49, 4)
    history[:, :, :, 3, 4] = NAN
    history[:, -1, :, 20, 20] = NAN  # seen before
    result = steps(history)
    np.testing.assert_array_equal(np.isnan(result[0, 1]), np.isnan(persistence(history, 3)[0]))


def test_what_flows_in_goes_on_with_the_edge_of_each_member():
    history = rain(48, 48, 4, velocity=(9, 0))
    result = steps(history, horizon=2, members=3)
    assert np.isfinite(result).all()
    for member in result[0]:
        assert (member[1, 0, :, :4] != history[0, -1, 0, :, :4]).mean() > 0.9
        brought, edge = member[1, 0, :, 12].mean(), member[1, 0, :, 20:24].mean()
        assert 0.3 * edge < brought < 3 * edge


def test_channels_are_apart():
    one, two = rain(33, 49, 4), rain(33, 49, 4, seed=1, velocity=(-1, 1))
    both = steps(np.concatenate([one, two], axis=2))
    np.testing.assert_array_equal(both, np.concatenate([steps(one), steps(two)], axis=3))
