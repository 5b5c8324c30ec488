import math
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from scipy.stats import t as student
from scores.stats.statistical_tests import diebold_mariano as diebold_mariano_of_scores

from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.verification.aggregation import scores_of
from fieldcast.pipeline.verification.bootstrap import draws
from fieldcast.pipeline.verification.significance import (
    diebold_mariano,
    direction,
    evidence,
    overlap,
    pool_leads,
    resample,
    resampled_scores,
)
from tests.made_sums import autoregressive, made_sums

FEW = Compare(confidence=0.9, resamples=300, seed=1)


@pytest.fixture
def models():
    """Return three models, the second and third with larger errors of one size, all with a little too much rain."""
    rng = np.random.default_rng(11)
    observed = rng.gamma(0.7, 3, (64, 3, 7))
    return {
        name: made_sums(rng.normal(0.1, size, observed.shape), observed, thresholds=(1.0, 4.0))
        for name, size in (("good", 1.0), ("fair", 2.0), ("poor", 2.0))
    }


def test_resampled_scores_are_the_scores_of_resampled_init_times(models):
    """The brute-force twin: take the drawn init times one by one and score them."""
    own = models["fair"]
    weights = draws(64, 5, 3, seed=7)
    names = ["rmse", "mean_error", "csi_1_mm_h"]
    found = resampled_scores(own, names, weights)
    for row, counts in enumerate(weights):
        taken = own.isel(init_time=np.repeat(np.arange(64), counts.astype(int)))
        expected = scores_of(taken)
        for name in names:
            np.testing.assert_allclose(found[name][row], list(expected[name].values()), rtol=1e-12)


def test_resampling_keeps_the_layout_and_drops_what_is_no_sum(models):
    own = models["good"]
    sums = resample(own, draws(64, 4, 5, seed=0))
    assert sums["rain.hits"].dims == ("replicate", "init_time", "lead_time", "rain.threshold")
    assert sums.sizes["init_time"] == 1
    assert sums["rain.n"].attrs == own["rain.n"].attrs
    assert "rain.valid_crc" not in sums
    assert (sums["rain.n"] == own["rain.n"].sum("init_time")).all()


def test_parts_of_resampled_sums_change_nothing(models, monkeypatch):
    weights = draws(64, 4, 50, seed=0)
    whole = resampled_scores(models["good"], ["rmse"], weights)
    monkeypatch.setattr("fieldcast.pipeline.verification.significance.VALUES_AT_ONCE", 300)
    np.testing.assert_allclose(resampled_scores(models["good"], ["rmse"], weights)["rmse"], whole["rmse"], rtol=1e-13)


def test_words_and_signs(models):
    shown = evidence(models, ["rmse", "csi_1_mm_h", "mean_error"], FEW)
    for lead in (5, 10, 15):
        assert shown.between("good", "fair", "rmse")[lead].word == "better"
        assert shown.between("fair", "good", "rmse")[lead].word == "worse"
        assert shown.between("good", "fair", "csi_1_mm_h")[lead].word == "better"  # higher is better
        assert shown.between("good", "fair", "rmse")[lead].value < 0 < shown.between("fair", "good", "rmse")[lead].value
        assert shown.between("fair", "poor", "rmse")[lead].word == "no difference"
    forward, back = (shown.between(*pair, "rmse")[5] for pair in (("good", "fair"), ("fair", "good")))
    assert (forward.low, forward.high, forward.p_value) == (-back.high, -back.low, back.p_value)
    assert (back.model, back.other) == ("fair", "good")


def test_values_are_the_scores_themselves(models):
    shown = evidence(models, ["rmse", "csi_4_mm_h"], FEW)
    for model, own in models.items():
        for score in ("rmse", "csi_4_mm_h"):
            values = {lead: interval.value for lead, interval in shown.intervals[model, score].items()}
            assert values == pytest.approx(scores_of(own)[score], rel=1e-12)
    interval = shown.intervals["good", "rmse"][5]
    assert interval.low < interval.value < interval.high


def test_intervals_of_independent_errors_are_those_of_the_textbook():
    """Errors independent in time: the interval of a mean is mean ± t s / √n; blocks cost a little more."""
    rng = np.random.default_rng(2)
    errors = np.abs(rng.normal(3, 1, (400, 1, 1)))
    shown = evidence({"one": made_sums(errors)}, ["mae"], Compare(confidence=0.9, resamples=4000))
    interval = shown.intervals["one", "mae"][5]
    half = student.ppf(0.95, 399) * errors.std(ddof=1) / 20
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.15)


def test_dependent_errors_have_wider_intervals_than_independent_ones():
    rng = np.random.default_rng(3)
    series = 10 + autoregressive(rng, 128, 0.8)
    shuffled = rng.permutation(series)
    ordered, mixed = (
        evidence({"one": made_sums(errors[:, :, None])}, ["mae"], FEW).intervals["one", "mae"][5]
        for errors in (series, shuffled)
    )
    assert ordered.value == pytest.approx(mixed.value)
    assert ordered.high - ordered.low > 1.8 * (mixed.high - mixed.low)


def test_the_same_model_twice_is_no_difference(models):
    shown = evidence({"one": models["good"], "twin": models["good"].copy(deep=True)}, ["rmse", "csi_1_mm_h"], FEW)
    for score in ("rmse", "csi_1_mm_h"):
        for difference in shown.between("one", "twin", score).values():
            assert (difference.value, difference.word) == (0.0, "no difference")
            assert difference.low == pytest.approx(0, abs=1e-12)
            assert math.isnan(difference.p_value)


def test_mean_errors_are_compared_by_absolute_value():
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 0.3, (80, 1, 4))
    sums = {"low": made_sums(noise - 1), "high": made_sums(noise + 2), "none": made_sums(noise + 1)}
    shown = evidence(sums, ["mean_error"], FEW)
    assert shown.between("low", "high", "mean_error")[5].word == "better"
    assert shown.between("low", "high", "mean_error")[5].value == pytest.approx(-1, abs=0.1)
    assert shown.between("low", "none", "mean_error")[5].word == "no difference"


def test_undefined_scores_have_no_interval():
    rng = np.random.default_rng(6)
    dry = np.zeros((40, 1, 4))
    sums = {name: made_sums(dry + rng.normal(0, 0.1, dry.shape), dry, thresholds=(5.0,)) for name in ("one", "two")}
    shown = evidence(sums, ["csi_5_mm_h"], FEW)
    difference = shown.between("one", "two", "csi_5_mm_h")[5]
    assert math.isnan(difference.value)
    assert math.isnan(difference.low)
    assert difference.word == "no difference"


def test_an_event_seen_once_has_no_interval():
    observed = np.zeros((40, 1, 4))
    observed[7, 0, 0] = 6
    shown = evidence({"one": made_sums(np.zeros(observed.shape), observed, thresholds=(5.0,))}, ["csi_5_mm_h"], FEW)
    assert shown.intervals["one", "csi_5_mm_h"][5].value == 1
    assert math.isnan(shown.intervals["one", "csi_5_mm_h"][5].low)


def test_one_init_time_has_no_interval(models):
    shown = evidence({name: own.isel(init_time=[0]) for name, own in models.items()}, ["rmse"], FEW)
    difference = shown.between("good", "fair", "rmse")[5]
    assert math.isfinite(difference.value)
    assert math.isnan(difference.low)
    assert difference.word == "no difference"


def test_equal_seeds_give_equal_evidence(models):
    assert evidence(models, ["rmse"], FEW) == evidence(models, ["rmse"], FEW)
    other = evidence(models, ["rmse"], Compare(confidence=0.9, resamples=300, seed=2))
    assert other.intervals["good", "rmse"][5] != evidence(models, ["rmse"], FEW).intervals["good", "rmse"][5]


def test_confidence_widens_intervals(models):
    widths = []
    for confidence in (0.5, 0.9, 0.99):
        interval = evidence(models, ["rmse"], Compare(confidence=confidence, resamples=300)).intervals["good", "rmse"][
            5
        ]
        widths.append(interval.high - interval.low)
    assert all(a < b for a, b in pairwise(widths))


def test_blocks_cover_the_forecasts_that_overlap():
    rng = np.random.default_rng(0)
    sums = {name: made_sums(rng.normal(0, 1, (160, 12, 2))) for name in ("one", "two")}
    assert overlap(sums["one"]) == list(range(1, 13))
    assert evidence(sums, ["rmse"], FEW).block >= 12
    apart = {name: made_sums(rng.normal(0, 1, (160, 12, 2)), every=np.timedelta64(1, "h")) for name in ("one", "two")}
    assert overlap(apart["one"]) == [1] * 12
    assert evidence(apart, ["rmse"], FEW).block < 12


@pytest.mark.parametrize("steps", [1, 3, 6])
def test_diebold_mariano_is_that_of_the_scores_package(steps):
    rng = np.random.default_rng(steps)
    differences = 0.3 + autoregressive(rng, 60, 0.5)[:, 0]
    series = xr.DataArray(differences[None], dims=("series", "time"), coords={"series": [0], "h": ("series", [steps])})
    expected = diebold_mariano_of_scores(series, "series", "h", method="HLN", statistic_distribution="t")
    statistic, p_value = diebold_mariano(differences, steps)
    assert statistic == pytest.approx(float(expected.dm_test_stat[0]), rel=1e-6)
    above = float(expected.confidence_gt_0[0])
    assert p_value == pytest.approx(2 * min(above, 1 - above), rel=1e-6)
    assert diebold_mariano(-differences, steps) == pytest.approx((-statistic, p_value))
    gap = np.concatenate([differences[:20], [np.nan], differences[20:]])
    assert diebold_mariano(gap, steps) == pytest.approx((statistic, p_value))


def test_diebold_mariano_is_undefined_without_a_variance():
    for differences, steps in ((np.zeros(9), 1), (np.ones(9), 1), (np.arange(3.0), 3)):
        assert all(math.isnan(value) for value in diebold_mariano(differences, steps))


def test_p_values_are_of_mean_losses_at_each_lead(models):
    shown = evidence(models, ["rmse", "mae", "csi_1_mm_h"], FEW)
    squares = [(own["rain.squared_error"] / own["rain.n"]).values for own in (models["good"], models["fair"])]
    for k, lead in enumerate((5, 10, 15)):
        expected = diebold_mariano(squares[0][:, k] - squares[1][:, k], k + 1)[1]
        assert shown.between("good", "fair", "rmse")[lead].p_value == pytest.approx(expected, rel=1e-6)
        assert 0 <= shown.between("fair", "poor", "mae")[lead].p_value <= 1
        assert math.isnan(shown.between("good", "fair", "csi_1_mm_h")[lead].p_value)


def test_directions():
    assert [direction(score) for score in ("rmse", "mae", "far_1_mm_h", "temperature/rmse")] == [-1] * 4
    assert [direction(score) for score in ("csi_1_mm_h", "pod_1_mm_h", "fss_1_mm_h_10_km")] == [1] * 3
    assert direction("mean_error") == 0
    with pytest.raises(ValueError, match="frequency_bias_1_mm_h are not tested"):
        direction("frequency_bias_1_mm_h")


def test_a_score_that_is_not_there_is_named(models):
    with pytest.raises(ValueError, match="no score named 'csi_9_mm_h' in the sums of rain"):
        evidence(models, ["csi_9_mm_h"], FEW)


def test_pooled_leads_are_sums_over_leads(models):
    own = models["good"]
    pooled = pool_leads(own, [10, 15])
    squares, n = (own[f"rain.{name}"].values[:, 1:].sum() for name in ("squared_error", "n"))
    assert scores_of(pooled)["rmse"] == pytest.approx({15: (squares / n) ** 0.5})
    assert list(scores_of(pool_leads(own))["rmse"]) == [15]
    assert scores_of(pool_leads(own, [5]))["rmse"][5] == pytest.approx(scores_of(own)["rmse"][5])
    with pytest.raises(ValueError, match=r"no forecast reaches 20 minutes ahead, expected leads among \[5, 10, 15\]"):
        pool_leads(own, [5, 20])


def test_many_models_take_little_memory():
    rng = np.random.default_rng(8)
    observed = rng.gamma(0.7, 3, (130, 12, 16))
    thresholds = (0.5, 1.0, 2.0, 5.0)
    sums = {f"m{k}": made_sums(rng.normal(0, 1, observed.shape), observed, thresholds=thresholds) for k in range(8)}
    tracemalloc.start()
    evidence(sums, ["rmse", "mae", "mean_error", "csi_1_mm_h"], Compare())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * 2**20
