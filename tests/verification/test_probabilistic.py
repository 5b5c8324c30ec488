import numpy as np
import pytest
import scores
import xarray as xr

from fieldcast.pipeline.verification import probabilistic
from fieldcast.pipeline.verification.aggregation import Extras

DIMS = ("init_time", "lead_time", "member", "y", "x")
POOL = ["init_time", "y", "x"]
ONE_CELL = np.ones((1, 1, 1), bool)


@pytest.fixture
def members(fields):
    """Return seven members a cell, some of them equal to each other and to the observation, on a grid of tenths."""
    _, observed, valid = fields
    many = np.random.default_rng(4).gamma(0.7, 2, (*valid.shape[:2], 7, *valid.shape[2:]))
    return np.round(many, 1).astype(np.float32), np.round(observed, 1).astype(np.float32), valid


def arrays(members, observed, valid):
    kept = np.where(valid, observed, np.nan)
    return xr.DataArray(members, dims=DIMS), xr.DataArray(kept, dims=[dim for dim in DIMS if dim != "member"])


def one_cell(values, observed, thresholds=()):
    many = np.asarray(values, np.float32)[None, :, None, None]
    return probabilistic.member_sums(many, np.full((1, 1, 1), observed, np.float32), ONE_CELL, thresholds)


def test_one_cell_worked_by_hand():
    sums = one_cell([1, 3, 2, 2], 2, [2.0, 2.5])
    # |x − o| is 1, 1, 0, 0; of the 16 ordered pairs 8 differ by 1 and 2 by 2: 12 in all
    assert sums["crps"] == pytest.approx([2 / 4 - 12 / 32])
    assert sums["expected_squared_error"] == pytest.approx([2 / 3 * 5 / 4])
    np.testing.assert_allclose(sums["rank_histogram"], [[0, 1 / 3, 1 / 3, 1 / 3, 0]])
    np.testing.assert_allclose(sums["brier"], [[(3 / 4 - 1) ** 2, (1 / 4) ** 2]])
    assert np.argwhere(sums["reliability_weight"]).tolist() == [[0, 0, 7], [0, 1, 2]]
    assert sums["reliability_probability"].sum() == 1
    assert sums["reliability_events"].sum(axis=-1).tolist() == [[1, 0]]
    assert sums["forecast_class_weight"].tolist() == sums["forecast_class_covered"].tolist() == [[0, 1, 0]]


@pytest.mark.parametrize(("observed", "inside"), [(1, 1), (10, 1), (0.999, 0), (10.001, 0)])
def test_ten_members_span_the_90_percent_interval(observed, inside):
    assert one_cell(range(1, 11), observed)["interval_covered"] == [inside]


def test_the_interval_is_linear_between_members_and_constant_beyond():
    members = np.array([4.0, 0.0, 2.0, 8.0])[:, None, None]  # quantiles at 1/8, 3/8, 5/8, 7/8
    for level, expected in ((0.5, (1, 6)), (0.75, (0, 8)), (0.99, (0, 8)), (0.25, (2, 4))):
        np.testing.assert_allclose(np.ravel(probabilistic.interval(members, level)), expected)
    members[2] = np.nan
    assert np.isnan(probabilistic.interval(members, 0.5)).all()
    assert np.isnan(probabilistic.exceedance(members, [1.0])).all()


def test_exceedance_is_the_share_of_members():
    members = np.array([4.0, 0.0, 2.0, 8.0])[None, :, None, None]
    np.testing.assert_allclose(np.ravel(probabilistic.exceedance(members, [0.0, 2.0, 5.0, 9.0])), [1, 0.75, 0.25, 0])


def test_crps_is_that_of_the_scores_package(labelled, members):
    expected = scores.probability.crps_for_ensemble(*arrays(*members), "member", method="ecdf", reduce_dims=POOL)
    np.testing.assert_allclose(probabilistic.crps(labelled(*members)), expected, rtol=1e-6)


def test_crps_stays_exact_far_from_zero():
    rng = np.random.default_rng(0)
    many, observed = 1e6 + rng.random((10, 5)), 1e6 + rng.random(5)
    twin = [np.abs(x - o).mean() - np.abs(x[:, None] - x).mean() / 2 for x, o in zip(many.T, observed, strict=True)]
    np.testing.assert_allclose(probabilistic.crps_of_sorted(np.sort(many, axis=0), observed), twin, rtol=1e-6)


@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_brier_is_that_of_the_scores_package(labelled, members, threshold):
    many, seen = arrays(*members)
    probability = (many >= threshold).mean("member").where(seen.notnull())
    event = (seen >= threshold).where(seen.notnull())
    expected = scores.probability.brier_score(probability, event, reduce_dims=POOL)
    actual = probabilistic.brier(labelled(*members)).sel(threshold=threshold)
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


def test_ranks_equal_their_slow_twin(members):
    many, observed, valid = (array[:, 0] for array in members)
    expected = np.zeros((len(many), 8))
    for frame, y, x in np.argwhere(valid):
        below = (many[frame, :, y, x] < observed[frame, y, x]).sum()
        equal = (many[frame, :, y, x] == observed[frame, y, x]).sum()
        expected[frame, below : below + equal + 1] += 1 / (equal + 1)
    actual = probabilistic.member_sums(many, observed, valid, [])["rank_histogram"]
    np.testing.assert_allclose(actual, expected, atol=1e-9)


def test_an_honest_ensemble_is_reliable(labelled):
    """Members and observations are drawn alike: spread equals error, 90 % of intervals of 19 members hold."""
    rng = np.random.default_rng(6)
    centre = rng.normal(0, 3, (4, 1, 1, 60, 60))
    many, observed = centre + rng.normal(0, 1, (4, 1, 19, 60, 60)), (centre + rng.normal(0, 1, centre.shape))[:, :, 0]
    valid = np.ones(observed.shape, bool)
    sums = labelled(many, observed, valid, extras=Extras())
    assert probabilistic.spread_skill(sums).item() == pytest.approx(1, abs=0.02)
    ranks = sums["rank_histogram"].sum(("init_time", "lead_time")) / sums["weight"].sum()
    np.testing.assert_allclose(ranks, 1 / 20, atol=0.01)
    # the interval runs from rank 1.45 of 19 to rank 18.55: of 20 gaps 17.1 lie inside
    assert probabilistic.coverage_90(sums).item() == pytest.approx(17.1 / 20, abs=0.01)
    bins = {name: sums[name].sum(("init_time", "lead_time")).values for name in probabilistic.RELIABILITY}
    for p, o, n in zip(bins["reliability_probability"].flat, bins["reliability_events"].flat,
                       bins["reliability_weight"].flat, strict=True):  # fmt: skip
        assert n == 0 or abs(p - o) / n < 0.08
