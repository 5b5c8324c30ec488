"""Economic value against its closed forms and against users who act cell by cell."""

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.verification import probabilistic
from fieldcast.pipeline.verification.categorical import contingency_sums, pod, pofd
from fieldcast.pipeline.verification.economic import COUNTS, value, value_sums

DIMS = ("init_time", "lead_time")


def sums_of(values, observed, threshold, members=None):
    """Return the kept sums of one lead of forecasts (init_time, y, x), with members (init_time, member, y, x)."""
    valid = np.isfinite(observed)
    sums = contingency_sums(values, observed, valid, [threshold])
    if members is not None:
        sums |= probabilistic.member_sums(members, observed, valid, [threshold])
    kept = {name: sums[name][:, None, 0] for name in COUNTS if name in sums}
    return xr.Dataset({name: ((*DIMS, "probability_bin")[: array.ndim], array) for name, array in kept.items()})


@pytest.fixture(scope="module")
def fields():
    draws = np.random.default_rng(4)
    observed = draws.gamma(0.5, 2, (30, 13, 17))
    return observed, observed * draws.lognormal(0, 0.8, observed.shape)


@pytest.mark.parametrize("cost_loss", [0.02, 0.1, 0.25, 0.6, 0.9])
def test_of_yes_and_no_it_is_richardsons_closed_form(fields, cost_loss):
    observed, forecast = fields
    sums = sums_of(forecast, observed, 2.0)
    base = float((observed >= 2).mean())
    hit_rate, false_rate = float(pod(sums)[0]), float(pofd(sums)[0])
    expected = (
        min(cost_loss, base) - false_rate * cost_loss * (1 - base) + hit_rate * base * (1 - cost_loss) - base
    ) / (min(cost_loss, base) - base * cost_loss)
    assert float(value(value_sums(sums, cost_loss))[0]) == pytest.approx(expected)


def test_at_the_base_rate_it_is_the_peirce_skill_score(fields):
    observed, forecast = fields
    sums = sums_of(forecast, observed, 2.0)
    base = float((observed >= 2).mean())
    assert float(value(value_sums(sums, base))[0]) == pytest.approx(float(pod(sums)[0] - pofd(sums)[0]))


@pytest.mark.parametrize(("count", "ratios"), [(10, [0.03, 0.1, 0.25, 0.5, 0.77, 0.9]), (25, [0.1, 0.3, 0.6, 0.9])])
def test_of_probabilities_it_is_that_of_a_user_who_acts_cell_by_cell(fields, count, ratios):
    observed, forecast = fields
    draws = np.random.default_rng(9)
    members = forecast[:, None] * draws.lognormal(0, 0.5, (30, count, 13, 17))
    sums = sums_of(members.mean(axis=1), observed, 2.0, members)
    event, probability = observed >= 2, (members >= 2).mean(axis=1)
    for ratio in ratios:
        expense = np.where(probability >= ratio - 1e-9, ratio, event).mean()
        climate, perfect = min(ratio, event.mean()), ratio * event.mean()
        expected = (climate - expense) / (climate - perfect)
        assert float(value(value_sums(sums, ratio))[0]) == pytest.approx(expected)


def test_perfect_forecasts_have_1_and_climate_has_0(fields):
    observed, _ = fields
    assert float(value(value_sums(sums_of(observed, observed, 2.0), 0.2))[0]) == pytest.approx(1)
    base = float((observed >= 2).mean())
    never, always = np.zeros_like(observed), np.full_like(observed, 9.0)
    assert float(value(value_sums(sums_of(never, observed, 2.0), base + 0.1))[0]) == pytest.approx(0)
    assert float(value(value_sums(sums_of(always, observed, 2.0), base - 0.1))[0]) == pytest.approx(0)


def test_without_an_event_it_is_undefined(fields):
    observed, forecast = fields
    assert np.isnan(value(value_sums(sums_of(forecast, observed * 0, 2.0), 0.2))).all()
