import numpy as np
import pytest

from fieldcast.pipeline.datasets.grid import window_cells
from fieldcast.pipeline.verification import categorical, continuous, probabilistic, spatial, spectral, structural
from fieldcast.pipeline.verification.aggregation import Extras

OBSERVED = np.array([[0, 0, 1, 2], [0, 3, 0, 0], [0, 0, 0, 0], [4, 0, 0, 0]], np.float32)[None, None]
FORECAST = np.array([[0, 0, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32)[None, None]
HOLE = np.ones((1, 1, 4, 4), bool)
HOLE[0, 0, 3, 0] = False  # where 4 was observed


def values(score):
    return score.values.ravel().tolist()


def test_errors_worked_by_hand(labelled):
    sums = labelled(FORECAST, OBSERVED)
    # errors: -2 at (0, 3), -2 at (1, 1), +1 at (1, 2), -4 at (3, 0)
    assert values(continuous.rmse(sums)) == pytest.approx([1.25])  # sqrt(25 / 16)
    assert values(continuous.mae(sums)) == [9 / 16]
    assert values(continuous.mean_error(sums)) == [-7 / 16]
    assert values(continuous.mse_frame(sums)) == [25]


def test_missing_cells_count_nowhere(labelled):
    with_nan = np.where(HOLE, OBSERVED, np.nan)
    sums = labelled(FORECAST, with_nan, HOLE)
    assert values(sums["n"]) == [15]
    assert values(continuous.rmse(sums)) == pytest.approx([(9 / 15) ** 0.5])
    assert values(continuous.mse_frame(sums)) == [9]


def test_contingency_worked_by_hand(labelled):
    sums = labelled(FORECAST, OBSERVED, thresholds=(1.0,))
    # observed events: 4; forecast events: 3; both: (0, 2) and (1, 1)
    assert [values(sums[name])[0] for name in categorical.SUMS] == [2, 2, 1, 11]
    assert values(categorical.csi(sums)) == [2 / 5]
    assert values(categorical.pod(sums)) == [1 / 2]
    assert values(categorical.far(sums)) == pytest.approx([1 / 3])
    assert values(categorical.frequency_bias(sums)) == [3 / 4]


def test_other_scores_of_the_table_worked_by_hand(labelled):
    sums = labelled(FORECAST, OBSERVED, thresholds=(1.0,))  # 2 hits, 2 misses, 1 false alarm, 11 correct negatives
    assert values(categorical.pofd(sums)) == pytest.approx([1 / 12])
    assert values(categorical.ets(sums)) == pytest.approx([(2 - 12 / 16) / (5 - 12 / 16)])
    assert values(categorical.hss(sums)) == pytest.approx([2 * (22 - 2) / (4 * 13 + 3 * 12)])
    h, f = np.log(1 / 2), np.log(1 / 12)
    expected = (f - h - np.log(11 / 12) + h) / (f + h + np.log(11 / 12) + h)  # 1 − H is 1/2 as well
    assert values(categorical.sedi(sums)) == pytest.approx([expected])
    assert values(probabilistic.brier(sums)) == pytest.approx([3 / 16])
    assert values(probabilistic.crps(sums)) == values(continuous.mae(sums))


def test_moments_worked_by_hand(labelled):
    sums = labelled(FORECAST, OBSERVED, extras=Extras())
    # sums over 16 cells: f 3, o 10, f² 3, o² 30, fo 4
    f, o, product = 3 / 16 - (3 / 16) ** 2, 30 / 16 - (10 / 16) ** 2, 4 / 16 - 30 / 256
    assert values(continuous.variance_ratio(sums)) == pytest.approx([f / o])
    assert values(continuous.correlation(sums)) == pytest.approx([product / (f * o) ** 0.5])


def test_anomalies_worked_by_hand(labelled):
    climatology = np.zeros((1, 4, 4), np.float32)
    climatology[0, 0, 2] = 0.5  # there both anomalies are a half
    climatology[0, 3, 0] = np.nan  # where 4 was observed: left out
    sums = labelled(FORECAST, OBSERVED, extras=Extras(climatology=climatology))
    product, forecast, observed = 0.25 + 3, 0.25 + 1 + 1, 0.25 + 4 + 9
    assert values(continuous.anomaly_correlation(sums)) == pytest.approx([product / (forecast * observed) ** 0.5])


def test_rows_weigh_cells_and_events(labelled):
    rows = np.array([0.5, 1.5, 1.0, 1.0])
    sums = labelled(FORECAST, OBSERVED, thresholds=(1.0,), extras=Extras(rows=rows))
    # row 0: error −2, a hit and a miss; row 1: −2 and +1, a hit and a false alarm; row 3: −4, a miss
    assert values(sums["n"]) == values(sums["weight"]) == [16]
    assert values(continuous.mean_error(sums)) == pytest.approx([(0.5 * -2 + 1.5 * -1 - 4) / 16])
    assert values(continuous.rmse(sums)) == pytest.approx([((0.5 * 4 + 1.5 * 5 + 16) / 16) ** 0.5])
    assert [values(sums[name])[0] for name in categorical.SUMS] == [2, 1.5, 1.5, 11]
    assert values(spatial.fss(sums)[..., 0]) == pytest.approx([1 - (0.5 + 1.5 + 1) / (0.5 * 3 + 1.5 * 3 + 1)])
    assert values(sums["class_weight"][..., 1]) == [3.5]  # observed at or above 1: 0.5 + 0.5 + 1.5 + 1


def test_the_peak_is_that_of_the_range(labelled):
    sums = labelled(FORECAST, OBSERVED, extras=Extras(data_range=4.0))
    assert values(structural.psnr(sums)) == pytest.approx([10 * np.log10(16 * 16 / 25)])
    assert np.isnan(values(structural.ssim(sums))).all()  # narrower than a window


def test_fine_scales_and_resolution_worked_by_hand(labelled):
    """Two waves along x, of 16 and 4 cells: the forecast halves the amplitude of the short one."""
    x = np.arange(16)
    long, short = (np.broadcast_to(np.sin(2 * np.pi * x / cells), (1, 1, 16, 16)) for cells in (16, 4))
    sums = labelled(long + short / 2, long + short, extras=Extras(spacing=(2.0, 2.0)))
    np.testing.assert_allclose(sums["wavelength"], 32 / np.arange(1, 8))
    assert values(spectral.spectrum_ratio(sums)) == pytest.approx([1 / 4])
    power = spectral.radial_power(np.asarray(long + short)[0])[0]
    assert np.flatnonzero(power > 1e-9).tolist() == [1, 4]
    coarse = {"forecast_power": 0.6, "observed_power": 1.0}
    made = sums.assign({name: sums[name] * 0 + value for name, value in coarse.items()})
    made["forecast_power"][..., 3] = 0.4  # of 8 km; what is resolved below does not count
    assert values(spectral.effective_resolution_km(made)) == pytest.approx([32 / 3])
    made["forecast_power"][..., 0] = 0.4
    assert np.isnan(values(spectral.effective_resolution_km(made))).all()


def test_the_event_includes_its_threshold(labelled):
    equal = np.full((1, 1, 4, 4), np.float32(0.1))
    assert values(categorical.csi(labelled(equal, equal, thresholds=(0.1,)))) == [1]


def test_fss_of_single_cells_worked_by_hand(labelled):
    sums = labelled(FORECAST, OBSERVED, thresholds=(1.0,), windows=[(1, 1)], scales_km=(1.0,))
    assert values(spatial.fss(sums)) == pytest.approx([1 - 3 / 7])  # 3 cells differ, 4 + 3 events


def test_fss_leaves_missing_cells_out_of_the_fraction():
    forecast, observed = np.zeros((1, 3, 3)), np.zeros((1, 3, 3))
    forecast[0, 1, 1] = observed[0, 0, 0] = observed[0, 1, 1] = 1
    valid = np.ones((1, 3, 3), bool)
    valid[0, 2, :] = False
    sums = spatial.fraction_sums(forecast, observed, valid, [1.0], [(3, 3)])
    # windows with at least 4.5 of 9 cells valid: only that at (0, 1) and (1, 1), both over the six valid cells
    assert sums["fss_numerator"].ravel() == pytest.approx([2 * (1 / 6) ** 2])
    assert sums["fss_denominator"].ravel() == pytest.approx([2 * ((1 / 6) ** 2 + (2 / 6) ** 2)])


def test_fss_equals_its_slow_twin():
    rng = np.random.default_rng(0)
    forecast, observed, valid = rng.random((1, 11, 13)), rng.random((1, 11, 13)), rng.random((1, 11, 13)) > 0.3
    numerator = denominator = 0.0
    for y in range(11):
        for x in range(13):
            box = (0, slice(max(0, y - 1), y + 2), slice(max(0, x - 2), x + 3))
            n = valid[box].sum()
            if n >= 0.5 * 15:
                pf, po = (((field >= 0.6) & valid)[box].sum() / n for field in (forecast, observed))
                numerator, denominator = numerator + (pf - po) ** 2, denominator + pf**2 + po**2
    sums = spatial.fraction_sums(forecast, observed, valid, [0.6], [(1, 1), (3, 5), (9, 7)])
    assert sums["fss_numerator"][0, 0, 1] == pytest.approx(numerator)
    assert sums["fss_denominator"][0, 0, 1] == pytest.approx(denominator)


def test_a_perfect_forecast_scores_perfectly(labelled, fields):
    _, observed, valid = fields
    sums = labelled(observed, observed, valid, extras=Extras(data_range=5.0, spacing=(1.0, 1.0)))
    for score, perfect in {
        continuous.rmse: 0, continuous.mae: 0, continuous.mean_error: 0, continuous.mse_frame: 0, categorical.csi: 1,
        categorical.pod: 1, categorical.pofd: 0, categorical.ets: 1, categorical.hss: 1, continuous.variance_ratio: 1,
        probabilistic.crps: 0, probabilistic.brier: 0, spectral.spectrum_ratio: 1,
        categorical.far: 0, categorical.frequency_bias: 1, spatial.fss: 1,
    }.items():  # fmt: skip
        assert (score(sums) == perfect).all(), score.__name__
    np.testing.assert_allclose(continuous.correlation(sums), 1)


def test_scores_without_events_or_cells_are_nan(labelled):
    dry = np.zeros((1, 1, 4, 4), np.float32)
    sums = labelled(dry, dry)
    for score in (
        categorical.csi, categorical.pod, categorical.far, categorical.frequency_bias, categorical.ets, categorical.hss,
        categorical.sedi, spatial.fss,
    ):  # fmt: skip
        assert score(sums).isnull().all(), score.__name__
    empty = labelled(dry, dry, np.zeros(dry.shape, bool))
    for score in (continuous.rmse, continuous.mae, continuous.mean_error, continuous.mse_frame):
        assert score(empty).isnull().all(), score.__name__


@pytest.mark.parametrize(("km", "cells"), [(2, 1), (10, 5), (20, 11), (0.5, 1), (5.9, 3), (6.1, 3)])
def test_neighbourhoods_are_odd_numbers_of_cells(km, cells):
    assert window_cells(km, (2.0, 2.0)) == (cells, cells)
