from dataclasses import dataclass

import h5py
import numpy as np
import pytest
import scores
import xarray as xr
from pysteps.utils.spectral import rapsd
from scores.spatial import fss_2d
from skimage.metrics import structural_similarity

from fieldcast.pipeline.config.sources import GriddedOptions
from fieldcast.pipeline.datasets.grid import row_weights
from fieldcast.pipeline.sources import open_source
from fieldcast.pipeline.verification import categorical, continuous, spatial, spectral
from fieldcast.pipeline.verification.aggregation import Extras, field_sums, frame_sums, label_sums, score_arrays
from fieldcast.pipeline.verification.scores import by_key
from fieldcast.pipeline.verification.strata import by_region

MEMBERS = 6
DIMS = ("init_time", "lead_time", "y", "x")
POOL = ["init_time", "y", "x"]


@dataclass
class Case:
    """Fields (init, lead, y, x) of an archive, the earlier ones as forecasts of the later."""

    members: np.ndarray  # (init, lead, member, y, x)
    observed: np.ndarray
    climatology: np.ndarray  # (1, y, x)
    rows: np.ndarray | None
    threshold: float
    data_range: float

    @property
    def forecast(self):
        return self.members[:, :, 0]

    @property
    def valid(self):
        return np.isfinite(self.observed) & np.isfinite(self.members).all(axis=2)

    @property
    def box(self):
        ny, nx = self.observed.shape[2:]
        return slice(ny // 3, ny // 2), slice(nx // 3, nx // 2)

    def arrays(self):
        """Return forecast and observed for the other packages, missing cells NaN in both."""
        pair = (self.forecast, self.observed)
        return [xr.DataArray(np.where(self.valid, field, np.nan).astype(float), dims=DIMS) for field in pair]

    def weights(self):
        return xr.DataArray(np.ones(self.observed.shape[2]) if self.rows is None else self.rows, dims="y")

    def sums(self, forecast):
        extras = Extras(self.rows, self.climatology, self.data_range, (2.0, 2.0), [self.box])
        arrays = frame_sums(forecast, self.observed, self.valid, [self.threshold], [], extras, np.zeros((2, 1), int))
        inits = xr.DataArray(np.arange(2).astype("datetime64[h]").astype("datetime64[ns]"), dims="init_time")
        leads = xr.DataArray(np.array([30], "timedelta64[m]").astype("timedelta64[ns]"), dims="lead_time")
        labels = {
            "wavelength": spectral.wavelengths_km(self.observed.shape[2:], (2.0, 2.0)),
            "region": np.array(["box"]),
        }
        coords = {"init_time": inits, "lead_time": leads}
        return field_sums(label_sums(arrays, "field", "u", coords, [self.threshold], [], labels), "field")


def knmi(archive):
    """Return rain rates out of HDF5, NaN out of the radars' range."""
    images = []
    for minute in ("00", "05", "10", "15", "20", "25", "30", "35"):
        with h5py.File(archive / f"radar/knmi/2010/08/RAD_NL25_RAP_5min_2010082600{minute}.h5") as file:
            counts = file["image1/image_data"][...]
        images.append(np.where(counts == 65535, np.nan, counts * 0.12).astype(np.float32))
    return np.stack(images), None, 0.5, 20.0


def era5(archive):
    """Return temperatures out of GRIB on a latitude-longitude grid, with a hole."""
    path = archive / "era5" / "era5-2mt-2019-03-uk.grib"
    source = open_source(GriddedOptions(path=str(path), variables=["t2m"]))
    every = slice(None)
    fields = source.segments()[0].read(np.arange(100, 108), every, every)["t2m"].values.astype(np.float32)
    fields[:, 30, 2:5] = np.nan
    latitude = xr.Dataset({"y": source.grid().y})
    return fields, row_weights(latitude), 280.0, 30.0


@pytest.fixture(scope="module", params=[knmi, era5])
def case(request, archive):
    fields, rows, threshold, data_range = request.param(archive)
    members = np.stack([fields[:MEMBERS], fields[1 : MEMBERS + 1]])[:, None]
    climatology = fields.astype(float).mean(axis=0, keepdims=True)
    return Case(members, fields[None, [6, 7]].swapaxes(0, 1), climatology, rows, threshold, data_range)


@pytest.fixture(scope="module")
def own(case):
    """Return all scores of the first member alone."""
    return by_key(score_arrays(case.sums(case.forecast), "u"))


def test_the_fields_have_holes_and_events(case):
    assert 0.1 < case.valid.mean() < 1
    assert (case.observed[case.valid] >= case.threshold).sum() > 100


@pytest.mark.parametrize("name", ["rmse", "mae", "mean_error"])
def test_errors(case, own, name):
    theirs = getattr(scores.continuous, {"mean_error": "additive_bias"}.get(name, name))
    expected = theirs(*case.arrays(), reduce_dims=POOL, weights=case.weights())
    assert np.isfinite(expected)
    np.testing.assert_allclose(own[name], expected, rtol=1e-6)


def test_moments(case, own):
    forecast, observed = case.arrays()
    weights = case.weights().broadcast_like(observed)
    normal = xr.DataArray(case.climatology[0], dims=("y", "x"))
    moments = [field.weighted(weights).var(POOL) for field in (forecast, observed)]
    np.testing.assert_allclose(own["variance_ratio"], moments[0] / moments[1], rtol=1e-6)
    expected = xr.corr(forecast, observed, POOL, weights=weights.where(observed.notnull(), 0))
    np.testing.assert_allclose(own["correlation"], expected, rtol=1e-6)
    f, o = forecast - normal, observed - normal
    total = {name: (product * weights).sum(POOL) for name, product in {"fo": f * o, "ff": f * f, "oo": o * o}.items()}
    np.testing.assert_allclose(own["anomaly_correlation"], total["fo"] / (total["ff"] * total["oo"]) ** 0.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("csi", "critical_success_index"),
        ("pod", "probability_of_detection"),
        ("far", "false_alarm_ratio"),
        ("pofd", "probability_of_false_detection"),
        ("frequency_bias", "frequency_bias"),
        ("ets", "equitable_threat_score"),
        ("hss", "heidke_skill_score"),
        ("sedi", "symmetric_extremal_dependence_index"),
    ],
)
def test_events(case, name, theirs):
    sums = categorical.contingency_sums(
        *(field[:, 0] for field in (case.forecast, case.observed, case.valid)), [case.threshold]
    )
    table = xr.Dataset({key: (("init_time", "threshold"), values) for key, values in sums.items()})
    operator = scores.categorical.ThresholdEventOperator(default_event_threshold=case.threshold)
    expected = getattr(operator.make_contingency_manager(*case.arrays()).transform(), theirs)()
    assert getattr(categorical, name)(table).item() == pytest.approx(float(expected), rel=1e-6)


def test_members(case):
    own = by_key(score_arrays(case.sums(case.members), "u"))
    observed = xr.DataArray(np.where(case.valid, case.observed, np.nan), dims=DIMS)
    members = xr.DataArray(case.members, dims=("init_time", "lead_time", "member", "y", "x"))
    kept = {"reduce_dims": POOL, "weights": case.weights()}
    expected = scores.probability.crps_for_ensemble(members, observed, "member", method="ecdf", **kept)
    np.testing.assert_allclose(own["crps"], expected, rtol=1e-6)
    probability = (members >= case.threshold).mean("member").where(observed.notnull())
    event = (observed >= case.threshold).where(observed.notnull())
    expected = scores.probability.brier_score(probability, event, **kept)
    np.testing.assert_allclose(own[f"brier_{case.threshold:g}_u"], expected, rtol=1e-6)
    spread = members.astype(float).var("member", ddof=1).where(observed.notnull()).weighted(case.weights()).mean(POOL)
    error = scores.continuous.mse(members.mean("member"), observed, **kept)
    np.testing.assert_allclose(own["spread_skill"], (spread * (MEMBERS + 1) / MEMBERS / error) ** 0.5, rtol=1e-5)


def test_structure(case, own):
    total, windows = 0.0, 0
    for f, o, valid in zip(case.forecast[:, 0], case.observed[:, 0], case.valid[:, 0], strict=True):
        pair = (np.where(valid, field, 0).astype(float) for field in (f, o))
        _, similarity = structural_similarity(*pair, data_range=case.data_range, full=True)
        whole = np.lib.stride_tricks.sliding_window_view(valid, (7, 7)).all(axis=(2, 3))
        total, windows = total + similarity[3:-3, 3:-3][whole].sum(), windows + whole.sum()
    assert own["ssim"].item() == pytest.approx(total / windows, rel=1e-6)
    mse = scores.continuous.mse(*case.arrays(), reduce_dims=POOL, weights=case.weights())
    np.testing.assert_allclose(own["psnr"], 10 * np.log10(case.data_range**2 / mse), rtol=1e-6)


def test_spectra(case, own):
    powers = []
    for field in (case.forecast[:, 0], case.observed[:, 0]):
        complete = np.where(case.valid[:, 0], field, 0).astype(float)
        powers.append(sum(rapsd(frame, fft_method=np.fft)[1:] for frame in complete))
    sums = case.sums(case.forecast)
    for name, power in zip(spectral.SUMS, powers, strict=True):
        np.testing.assert_allclose(sums[name].sum("init_time")[0], power, rtol=1e-6)
    fine = sums["wavelength"].values <= 16
    assert own["spectrum_ratio"].item() == pytest.approx(powers[0][fine].sum() / powers[1][fine].sum(), rel=1e-6)


def test_a_region(case):
    expected = scores.continuous.mae(
        *(field[:, :, *case.box] for field in case.arrays()), reduce_dims=POOL, weights=case.weights()[case.box[0]]
    )
    region = by_region(case.sums(case.forecast))["box"]
    assert np.isfinite(expected)
    np.testing.assert_allclose(continuous.mae(region), expected, rtol=1e-6)


def test_fss_in_range_is_that_of_the_scores_package(archive):
    fields, *_ = knmi(archive)
    pair = fields[[0, 6]]
    rows, columns = np.nonzero(np.isfinite(pair).all(axis=0))
    y, x = int(np.median(rows)), int(np.median(columns))
    cut = [field[y - 60 : y + 60, x - 50 : x + 50] for field in pair]
    assert np.isfinite(cut).all()
    valid = np.ones((1, 120, 100), bool)
    sums = spatial.fraction_sums(cut[0][None], cut[1][None], valid, [0.5], [(11, 11)], minimum_valid=1.0)
    forecast, observed = (xr.DataArray(field, dims=("y", "x")) for field in cut)
    expected = fss_2d(forecast, observed, event_threshold=0.5, window_size=(11, 11), spatial_dims=("y", "x"))
    assert 1 - (sums["fss_numerator"] / sums["fss_denominator"]).item() == pytest.approx(float(expected), abs=1e-6)
