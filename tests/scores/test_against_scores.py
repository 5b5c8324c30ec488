import numpy as np
import pytest
import scores
import xarray as xr
from scores.spatial import fss_2d

from pipeline.scores import categorical, continuous, spatial

DIMS = ("init_time", "lead_time", "y", "x")
POOL = ["init_time", "y", "x"]


def arrays(forecast, observed, valid):
    return (xr.DataArray(np.where(valid, field, np.nan), dims=DIMS) for field in (forecast, observed))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (continuous.rmse, scores.continuous.rmse),
        (continuous.mae, scores.continuous.mae),
        (continuous.mean_error, scores.continuous.additive_bias),
    ],
)
def test_errors(labelled, fields, ours, theirs):
    expected = theirs(*arrays(*fields), reduce_dims=POOL)
    np.testing.assert_allclose(ours(labelled(*fields)).values, expected.values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (categorical.csi, "critical_success_index"),
        (categorical.pod, "probability_of_detection"),
        (categorical.far, "false_alarm_ratio"),
        (categorical.frequency_bias, "frequency_bias"),
    ],
)
@pytest.mark.parametrize("threshold", [0.5, 2.0])
def test_events(labelled, fields, ours, theirs, threshold):
    operator = scores.categorical.ThresholdEventOperator(default_event_threshold=threshold)
    table = operator.make_contingency_manager(*arrays(*fields)).transform(reduce_dims=POOL)
    actual = ours(labelled(*fields)).sel(threshold=threshold)
    np.testing.assert_allclose(actual.values, getattr(table, theirs)().values, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 5])
def test_fss_on_complete_windows(fields, size):
    forecast, observed, _ = (field[:, 0] for field in fields)
    sums = spatial.fraction_sums(forecast, observed, np.ones(forecast.shape, bool), [2.0], [(size, size)], 1.0)
    actual = 1 - sums["fss_numerator"].sum() / sums["fss_denominator"].sum()
    pair = (xr.DataArray(field, dims=("init_time", "y", "x")) for field in (forecast, observed))
    expected = fss_2d(*pair, event_threshold=2.0, window_size=(size, size), spatial_dims=("y", "x"))
    assert actual == pytest.approx(float(expected), abs=1e-6)
