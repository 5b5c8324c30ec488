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
from fieldcast.pipeline.verification.scores import Score, direction
from fieldcast.pipeline.verification.significance import (
    diebold_mariano,
    evidence,
    overlap,
    pool_leads,
    replicates,
)
from tests.made_sums import autoregressive, made_sums

RMSE, MAE, MEAN_ERROR = Score("rmse"), Score("mae"), Score("mean_error")
CSI_1, CSI_4, CSI_5, CSI_9 = (Score("csi", threshold, units="mm h-1") for threshold in (1.0, 4.0, 5.0, 9.0))
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
    names = [RMSE, MEAN_ERROR, CSI_1]
    scores = replicates(own, names, weights)
    for row, counts in enumerate(weights):
        taken = own.isel(init_time=np.repeat(np.arange(64), counts.astype(int)))
        expected = scores_of(taken)
        for name in names:
            np.testing.assert_allclose(scores[name].resampled[row], list(expected[name].values()), rtol=1e-12)


def test_scores_of_each_init_time_and_of_all_others(models):
    own = models["fair"]
    scores = replicates(own, [RMSE, CSI_1], draws(64, 5, 3, seed=7))
    for score in (RMSE, CSI_1):
        for position in (0, 17, 63):
            alone, others = own.isel(init_time=[position]), own.drop_isel(init_time=position)
            for rows, taken in ((scores[score].alone, alone), (scores[score].without, others)):
                np.testing.assert_allclose(rows[position], list(scores_of(taken)[score].values()), rtol=1e-10)


def test_scores_without_sums_are_undefined(models):
    scores = replicates(models["good"], [Score("spread_skill")], draws(64, 5, 3, seed=7))[Score("spread_skill")]
    assert [rows.shape for rows in scores] == [(3,), (3, 3), (64, 3), (64, 3)]
    assert all(np.isnan(rows).all() for rows in scores)


def test_words_and_signs(models):
    shown = evidence(models, [RMSE, CSI_1, MEAN_ERROR], FEW)
    for lead in (5, 10, 15):
        assert shown.between("good", "fair", RMSE)[lead].word == "better"
        assert shown.between("fair", "good", RMSE)[lead].word == "worse"
        assert shown.between("good", "fair", CSI_1)[lead].word == "better"  # higher is better
        assert shown.between("good", "fair", RMSE)[lead].value < 0 < shown.between("fair", "good", RMSE)[lead].value
        assert shown.between("fair", "poor", RMSE)[lead].word == "no difference"
    forward, back = (shown.between(*pair, RMSE)[5] for pair in (("good", "fair"), ("fair", "good")))
    assert (forward.low, forward.high, forward.p_value) == (-back.high, -back.low, back.p_value)
    assert (back.model, back.other) == ("fair", "good")


def test_values_are_the_scores_themselves(models):
    shown = evidence(models, [RMSE, CSI_4], FEW)
    for model, own in models.items():
        for score in (RMSE, CSI_4):
            values = {lead: interval.value for lead, interval in shown.intervals[model, score].items()}
            assert values == pytest.approx(scores_of(own)[score], rel=1e-12)
    interval = shown.intervals["good", RMSE][5]
    assert interval.low < interval.value < interval.high


def test_intervals_of_independent_errors_are_those_of_the_textbook():
    """Errors independent in time: the interval of a mean is mean ± t s / √n; blocks cost a little more."""
    rng = np.random.default_rng(2)
    errors = np.abs(rng.normal(3, 1, (400, 1, 1)))
    shown = evidence({"one": made_sums(errors)}, [MAE], Compare(confidence=0.9, resamples=4000))
    interval = shown.intervals["one", MAE][5]
    half = student.ppf(0.95, 399) * errors.std(ddof=1) / 20
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.15)


def test_dependent_errors_have_wider_intervals_than_independent_ones():
    rng = np.random.default_rng(3)
    series = 10 + autoregressive(rng, 128, 0.8)
    shuffled = rng.permutation(series)
    ordered, mixed = (
        evidence({"one": made_sums(errors[:, :, None])}, [MAE], FEW).intervals["one", MAE][5]
        for errors in (series, shuffled)
    )
    assert ordered.value == pytest.approx(mixed.value)
    assert ordered.high - ordered.low > 1.8 * (mixed.high - mixed.low)


def test_the_same_model_twice_is_no_difference(models):
    shown = evidence({"one": models["good"], "twin": models["good"].copy(deep=True)}, [RMSE, CSI_1], FEW)
    for score in (RMSE, CSI_1):
        for difference in shown.between("one", "twin", score).values():
            assert (difference.value, difference.word) == (0.0, "no difference")
            assert difference.low == pytest.approx(0, abs=1e-12)
            assert math.isnan(difference.p_value)


def test_mean_errors_are_compared_by_absolute_value():
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 0.3, (80, 1, 4))
    sums = {"low": made_sums(noise - 1), "high": made_sums(noise + 2), "none": made_sums(noise + 1)}
    shown = evidence(sums, [MEAN_ERROR], FEW)
    assert shown.between("low", "high", MEAN_ERROR)[5].word == "better"
    assert shown.between("low", "high", MEAN_ERROR)[5].value == pytest.approx(-1, abs=0.1)
    assert shown.between("low", "none", MEAN_ERROR)[5].word == "no difference"


def test_undefined_scores_have_no_interval():
    rng = np.random.default_rng(6)
    dry = np.zeros((40, 1, 4))
    sums = {name: made_sums(dry + rng.normal(0, 0.1, dry.shape), dry, thresholds=(5.0,)) for name in ("one", "two")}
    shown = evidence(sums, [CSI_5], FEW)
    difference = shown.between("one", "two", CSI_5)[5]
    assert math.isnan(difference.value)
    assert math.isnan(difference.low)
    assert difference.word == "no difference"


def test_an_event_seen_once_has_no_interval():
    observed = np.zeros((40, 1, 4))
    observed[7, 0, 0] = 6
    shown = evidence({"one": made_sums(np.zeros(observed.shape), observed, thresholds=(5.0,))}, [CSI_5], FEW)
    assert shown.intervals["one", CSI_5][5].value == 1
    assert math.isnan(shown.intervals["one", CSI_5][5].low)


def test_one_init_time_has_no_interval(models):
    shown = evidence({name: own.isel(init_time=[0]) for name, own in models.items()}, [RMSE], FEW)
    difference = shown.between("good", "fair", RMSE)[5]
    assert math.isfinite(difference.value)
    assert math.isnan(difference.low)
    assert difference.word == "no difference"


def test_equal_seeds_give_equal_evidence(models):
    assert evidence(models, [RMSE], FEW) == evidence(models, [RMSE], FEW)
    other = evidence(models, [RMSE], Compare(confidence=0.9, resamples=300, seed=2))
    assert other.intervals["good", RMSE][5] != evidence(models, [RMSE], FEW).intervals["good", RMSE][5]


def test_confidence_widens_intervals(models):
    widths = []
    for confidence in (0.5, 0.9, 0.99):
        interval = evidence(models, [RMSE], Compare(confidence=confidence, resamples=300)).intervals["good", RMSE][5]
        widths.append(interval.high - interval.low)
    assert all(a < b for a, b in pairwise(widths))


def test_blocks_cover_the_forecasts_that_overlap():
    rng = np.random.default_rng(0)
    sums = {name: made_sums(rng.normal(0, 1, (160, 12, 2))) for name in ("one", "two")}
    assert overlap(sums["one"]) == list(range(1, 13))
    assert evidence(sums, [RMSE], FEW).block >= 12
    apart = {name: made_sums(rng.normal(0, 1, (160, 12, 2)), every=np.timedelta64(1, "h")) for name in ("one", "two")}
    assert overlap(apart["one"]) == [1] * 12
    assert evidence(apart, [RMSE], FEW).block < 12


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
    shown = evidence(models, [RMSE, MAE, CSI_1], FEW)
    squares = [(own["rain.squared_error"] / own["rain.n"]).values for own in (models["good"], models["fair"])]
    for k, lead in enumerate((5, 10, 15)):
        expected = diebold_mariano(squares[0][:, k] - squares[1][:, k], k + 1)[1]
        assert shown.between("good", "fair", RMSE)[lead].p_value == pytest.approx(expected, rel=1e-6)
        assert 0 <= shown.between("fair", "poor", MAE)[lead].p_value <= 1
        assert math.isnan(shown.between("good", "fair", CSI_1)[lead].p_value)


def test_directions():
    lower, higher = ("rmse", "mae", "far", "brier", "crps"), ("csi", "pod", "fss", "correlation")
    assert [direction(Score(name)) for name in lower] == [-1] * 5
    assert [direction(Score(name, field="temperature")) for name in higher] == [1] * 4
    assert direction(MEAN_ERROR) == 0
    with pytest.raises(ValueError, match="frequency_bias_1_mm_h are not tested"):
        direction(Score("frequency_bias", 1.0, units="mm h-1"))


def test_a_score_that_is_not_there_is_named(models):
    with pytest.raises(ValueError, match="no score named 'csi_9_mm_h' in the sums of rain"):
        evidence(models, [CSI_9], FEW)


def test_pooled_leads_are_sums_over_leads(models):
    own = models["good"]
    pooled = pool_leads(own, [10, 15])
    squares, n = (own[f"rain.{name}"].values[:, 1:].sum() for name in ("squared_error", "n"))
    assert scores_of(pooled)[RMSE] == pytest.approx({15: (squares / n) ** 0.5})
    assert list(scores_of(pool_leads(own))[RMSE]) == [15]
    assert scores_of(pool_leads(own, [5]))[RMSE][5] == pytest.approx(scores_of(own)[RMSE][5])
    with pytest.raises(ValueError, match=r"no forecast reaches 20 minutes ahead, expected leads among \[5, 10, 15\]"):
        pool_leads(own, [5, 20])


def test_many_models_take_little_memory():
    rng = np.random.default_rng(8)
    observed = rng.gamma(0.7, 3, (130, 12, 16))
    thresholds = (0.5, 1.0, 2.0, 5.0)
    sums = {f"m{k}": made_sums(rng.normal(0, 1, observed.shape), observed, thresholds=thresholds) for k in range(8)}
    tracemalloc.start()
    evidence(sums, [RMSE, MAE, MEAN_ERROR, CSI_1], Compare())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400 * 2**20


def test_the_variance_of_training_widens_intervals_and_differences(models):
    """By hand: the variance between two trainings of one model is added to that of the init times."""
    alone = evidence(models, [RMSE], FEW)
    shown = evidence(models, [RMSE], FEW, [["fair", "poor"], ["good", "gone"]])
    assert shown.trainings == (("fair", "poor"),)
    quantile = student.ppf(0.95, 64 / shown.block - 1)
    for lead, before in alone.intervals["fair", RMSE].items():
        values = [alone.intervals[name, RMSE][lead].value for name in ("fair", "poor")]
        between = np.var(values, ddof=1)
        after = shown.intervals["fair", RMSE][lead]
        assert after.value == before.value
        half, wider = ((interval.high - interval.low) / 2 for interval in (before, after))
        assert wider == pytest.approx(math.hypot(half, quantile * math.sqrt(between)))
        pair, wider_pair = (found.between("good", "fair", RMSE)[lead] for found in (alone, shown))
        widened = math.hypot((pair.high - pair.low) / 2, quantile * math.sqrt(between))
        assert (wider_pair.high - wider_pair.low) / 2 == pytest.approx(widened)
        assert shown.intervals["good", RMSE][lead] == alone.intervals["good", RMSE][lead]
