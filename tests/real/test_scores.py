import h5py
import numpy as np
import pytest
import scores
import xarray as xr
from scores.spatial import fss_2d

from pipeline.scores import categorical, continuous, spatial


@pytest.fixture(scope="module")
def pair(archive):
    """Return two radar images half an hour apart as rain rates (y, x), NaN out of range."""
    folder = archive / "radar" / "knmi" / "2010" / "08"
    images = []
    for minute in ("0000", "0030"):
        with h5py.File(folder / f"RAD_NL25_RAP_5min_20100826{minute}.h5") as file:
            counts = file["image1/image_data"][...]
        images.append(np.where(counts == 65535, np.nan, counts * 0.12).astype(np.float32))
    return images


def test_radar_images_score_as_in_the_scores_package(pair):
    valid = np.isfinite(pair[0]) & np.isfinite(pair[1])
    assert 0.1 < valid.mean() < 0.5
    frames = [field[None] for field in (*pair, valid)]
    error = {name: float(value[0]) for name, value in continuous.error_sums(*frames).items()}
    forecast, observed = (xr.DataArray(field, dims=("y", "x")).astype(np.float64) for field in pair)
    assert (error["squared_error"] / error["n"]) ** 0.5 == pytest.approx(
        float(scores.continuous.rmse(forecast, observed)), rel=1e-6
    )
    assert error["absolute_error"] / error["n"] == pytest.approx(
        float(scores.continuous.mae(forecast, observed)), rel=1e-6
    )
    counts = categorical.contingency_sums(*frames, [0.5])
    hits, misses, false_alarms, _ = (float(counts[name][0, 0]) for name in categorical.SUMS)
    assert hits > 100
    table = scores.categorical.ThresholdEventOperator(default_event_threshold=0.5).make_contingency_manager(
        forecast, observed
    )
    assert hits / (hits + misses + false_alarms) == pytest.approx(float(table.critical_success_index()), rel=1e-6)
    assert hits / (hits + misses) == pytest.approx(float(table.probability_of_detection()), rel=1e-6)
    assert false_alarms / (hits + false_alarms) == pytest.approx(float(table.false_alarm_ratio()), rel=1e-6)
    assert (hits + false_alarms) / (hits + misses) == pytest.approx(float(table.frequency_bias()), rel=1e-6)


def test_fss_in_range_is_that_of_the_scores_package(pair):
    rows, columns = np.nonzero(np.isfinite(pair[0]) & np.isfinite(pair[1]))
    y, x = int(np.median(rows)), int(np.median(columns))
    cut = [field[y - 60 : y + 60, x - 50 : x + 50] for field in pair]
    assert np.isfinite(cut).all()
    valid = np.ones((1, 120, 100), bool)
    sums = spatial.fraction_sums(cut[0][None], cut[1][None], valid, [0.5], [(11, 11)], minimum_valid=1.0)
    forecast, observed = (xr.DataArray(field, dims=("y", "x")) for field in cut)
    expected = fss_2d(forecast, observed, event_threshold=0.5, window_size=(11, 11), spatial_dims=("y", "x"))
    assert 1 - (sums["fss_numerator"] / sums["fss_denominator"]).item() == pytest.approx(float(expected), abs=1e-6)
