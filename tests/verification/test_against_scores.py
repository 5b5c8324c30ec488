import numpy as np
import pytest
import scores
import xarray as xr
from pysteps.utils.spectral import rapsd
from scores.spatial import fss_2d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from fieldcast.pipeline.verification import categorical, continuous, spatial, spectral, structural
from fieldcast.pipeline.verification.aggregation import Extras

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
        (continuous.correlation, scores.continuous.correlation.pearsonr),
    ],
)
def test_errors(labelled, fields, ours, theirs):
    expected = theirs(*arrays(*fields), reduce_dims=POOL)
    np.testing.assert_allclose(ours(labelled(*fields, extras=Extras())).values, expected.values, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (categorical.csi, "critical_success_index"),
        (categorical.pod, "probability_of_detection"),
        (categorical.far, "false_alarm_ratio"),
        (categorical.frequency_bias, "frequency_bias"),
        (categorical.pofd, "probability_of_false_detection"),
        (categorical.ets, "equitable_threat_score"),
        (categorical.hss, "heidke_skill_score"),
        (categorical.sedi, "symmetric_extremal_dependence_index"),
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


@pytest.mark.parametrize("shape", [(16, 16), (17, 17), (16, 23), (31, 12), (7, 8)])
def test_spectra_are_those_of_pysteps(shape):
    fields = np.random.default_rng(2).gamma(0.5, 2, (3, *shape))
    actual, lengths = spectral.radial_power(fields), spectral.wavelengths_km(shape, (2.0, 2.0))
    for field, power in zip(fields, actual, strict=True):
        expected, frequency = rapsd(field, fft_method=np.fft, return_freq=True, d=2.0)
        np.testing.assert_allclose(power, expected, rtol=1e-6)
        np.testing.assert_allclose(lengths, 1 / frequency[1:])


def test_members_have_the_mean_of_their_spectra():
    members = np.random.default_rng(2).random((2, 5, 12, 13))
    valid = np.ones((2, 12, 13), bool)
    power = spectral.power_sums(members.mean(axis=1), valid * 1.0, valid, members)["forecast_power"]
    expected = np.mean([[rapsd(field, fft_method=np.fft)[1:] for field in frame] for frame in members], axis=1)
    np.testing.assert_allclose(power, expected, rtol=1e-6)
    assert (power.sum() > 2 * spectral.power_sums(members.mean(axis=1), valid, valid)["forecast_power"].sum()).all()


def test_structure_is_that_of_scikit_image(fields):
    forecast, observed, _ = (field[:, 0] for field in fields)
    valid = np.ones(forecast.shape, bool)
    sums = structural.similarity_sums(forecast, observed, valid, 9.0)
    exact = [
        structural_similarity(f.astype(float), o.astype(float), data_range=9.0)
        for f, o in zip(forecast, observed, strict=True)
    ]
    np.testing.assert_allclose(sums["ssim"] / sums["ssim_windows"], exact, rtol=1e-6)
    assert (sums["ssim_windows"] == (valid.shape[1] - 6) * (valid.shape[2] - 6)).all()


def test_a_missing_cell_takes_its_windows_out_of_the_structure(fields):
    forecast, observed, _ = (field[:1, 0] for field in fields)
    valid = np.ones(forecast.shape, bool)
    valid[0, 10, 9] = False
    sums = structural.similarity_sums(forecast, np.where(valid, observed, np.nan), valid, 9.0)
    pair = (field[0].astype(float) for field in (forecast, observed))
    _, whole = structural_similarity(*pair, data_range=9.0, full=True)
    whole[7:14, 6:13] = 0  # the 49 windows that hold the cell
    assert sums["ssim_windows"] == [17 * 13 - 49]
    assert sums["ssim"] == pytest.approx([whole[3:-3, 3:-3].sum()], rel=1e-6)


def test_the_peak_ratio_is_that_of_scikit_image(labelled, fields):
    forecast, observed, _ = fields
    actual = structural.psnr(labelled(forecast, observed, extras=Extras(data_range=9.0)))
    for lead in range(3):
        expected = peak_signal_noise_ratio(
            observed[:, lead].astype(float), forecast[:, lead].astype(float), data_range=9.0
        )
        assert float(actual[lead]) == pytest.approx(expected, rel=1e-6)


def test_weighted_errors_are_those_of_the_scores_package(labelled, fields):
    latitude = xr.DataArray(np.linspace(70, 26, fields[0].shape[2]), dims="y")
    weights = scores.functions.create_latitude_weights(latitude)
    rows = (weights / weights.mean()).values
    sums = labelled(*fields, extras=Extras(rows=rows))
    for ours, theirs in ((continuous.mae, scores.continuous.mae), (continuous.rmse, scores.continuous.rmse)):
        expected = theirs(*arrays(*fields), reduce_dims=POOL, weights=weights)
        np.testing.assert_allclose(ours(sums), expected, rtol=1e-6)
