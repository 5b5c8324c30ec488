import numpy as np
import pytest

from fieldcast.pipeline.verification import aggregation
from fieldcast.pipeline.verification.scores import OF_USERS, TABLE, Score, badness, best_at, by_key
from fieldcast.pipeline.verification.storm_cells import StormCellOptions

RAIN = "mm h-1"


@pytest.mark.parametrize(
    ("score", "key", "title"),
    [
        (Score("rmse"), "rmse", "RMSE"),
        (Score("coverage_90"), "coverage_90", "Coverage of the 90 % interval"),
        (Score("effective_resolution_km"), "effective_resolution_km", "Effective resolution, km"),
        (Score("csi", 0.5, units=RAIN), "csi_0.5_mm_h", "CSI ≥ 0.5 mm/h"),
        (Score("frequency_bias", 273.0, units="K"), "frequency_bias_273_k", "Frequency bias ≥ 273 K"),
        (Score("brier", -5.0, units="C"), "brier_-5_c", "Brier score ≥ -5 C"),
        (Score("fss", 1.0, 10.0, RAIN), "fss_1_mm_h_10_km", "FSS ≥ 1 mm/h, 10 km"),
        (Score("fss", 0.5, 10.0, "1"), "fss_0.5_10_km", "FSS ≥ 0.5, 10 km"),
        (Score("csi", 1e-5, units="mm", field="rain_rate"), "rain_rate/csi_1e-05_mm", "CSI ≥ 1e-05 mm"),
    ],
)
def test_a_score_is_written_for_files_and_for_people(score, key, title):
    assert (score.key(), score.title()) == (key, title)
    assert by_key({score: 3}) == {key: 3}


def test_every_score_is_explained():
    assert all(row.title and row.formula and row.unit and row.perfect and row.averaging for row in TABLE.values())
    assert len({row.title for row in TABLE.values()}) == len(TABLE)


def test_the_table_lists_the_sums_that_each_score_takes(labelled, fields):
    """A function that took another sum would fail: it is given those of its line alone."""
    forecast, observed, valid = fields
    members = np.stack([forecast, observed * 0.5, forecast + 1], axis=2)
    storms = StormCellOptions(at_least=2, area_km2=4, within_km=20, spacing=(2.0, 2.0))
    normal = np.full((1, 23, 19), 1.5, np.float32)
    extras = aggregation.Extras(climatology=normal, data_range=9.0, spacing=(2.0, 2.0), storms=storms)
    scores = aggregation.score_arrays(labelled(members, observed, valid, extras=extras), RAIN)
    assert {score.name for score in scores} == set(TABLE) - {definition.name for definition in OF_USERS}
    undefined = {score.name for score, values in scores.items() if np.isnan(values).all()}
    assert undefined == {"ssim"}  # with holes everywhere no window of 7 x 7 cells is whole


def test_best_is_that_of_each_score():
    a, b = "a", "b"
    csi, bias = Score("csi", 1.0, units=RAIN), Score("frequency_bias", 1.0, units=RAIN)
    values = {Score("rmse"): (1.0, 2.0), csi: (0.2, 0.3), Score("mean_error"): (-0.1, -0.2), bias: (1.1, 0.5)}
    metrics = {model: {score: {5: pair[k]} for score, pair in values.items()} for k, model in enumerate((a, b))}
    assert {score.name: best_at(metrics, score, 5) for score in values} == {
        "rmse": [a], "csi": [b], "mean_error": [a], "frequency_bias": [a],
    }  # fmt: skip
    assert best_at({a: {csi: {5: float("nan")}}}, csi, 5) == []


@pytest.mark.parametrize(
    ("name", "better", "worse"),
    [
        ("crps", 1.0, 2.0), ("brier", 0.1, 0.2), ("far", 0.1, 0.2), ("pofd", 0.1, 0.2), ("pod", 0.2, 0.1),
        ("ssim", 0.9, 0.8), ("psnr", 30.0, 20.0), ("correlation", 0.9, -0.9), ("anomaly_correlation", 0.9, 0.1),
        ("sedi", 0.9, 0.1), ("variance_ratio", 0.9, 1.3), ("spectrum_ratio", 0.8, 0.1), ("spread_skill", 1.1, 0.7),
        ("coverage_90", 0.91, 0.99), ("coverage_90", 0.9, 0.5), ("effective_resolution_km", 8.0, 16.0),
        ("mse_frame", 1.0, 2.0),
    ],
)  # fmt: skip
def test_every_score_has_its_direction(name, better, worse):
    score = Score(name, field="heat")
    assert badness(score, better) < badness(score, worse) < badness(score, float("nan"))
