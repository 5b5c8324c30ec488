import pickle
import tracemalloc

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config import Region, Verify
from fieldcast.pipeline.errors import InputError, SchemaError
from fieldcast.pipeline.verification import blocks
from fieldcast.pipeline.verification.aggregation import field_sums, scores_of
from fieldcast.pipeline.verification.blocks import verify
from fieldcast.pipeline.verification.continuous import rmse
from fieldcast.pipeline.verification.scores import by_key
from fieldcast.pipeline.verification.strata import by_region
from fieldcast.pipeline.verification.sums_file import read_sums, write_sums

HISTORY, INITS, LEADS, NY, NX = 3, 7, 4, 11, 13
RAIN = ("rain_rate", {"units": "mm h-1"})
THRESHOLDS = {"rain_rate": [0.5, 2.0]}
RANGE = {"rain_rate": 10.0}


def options(neighbourhoods_km=(), **regions):
    return Verify(thresholds=THRESHOLDS, neighbourhoods_km=list(neighbourhoods_km), regions=regions)


def with_members(forecasts, count=5):
    """Return the forecasts as an ensemble whose mean is the forecast, its members apart by steps of a quarter."""
    offsets = ((np.arange(count) - (count - 1) / 2) / 4).astype(np.float32)
    members = forecasts.rain_rate.expand_dims({"member": np.arange(1, count + 1)}, axis=2)
    rain = members + xr.DataArray(offsets, dims="member")
    return forecasts.assign(rain_rate=rain.assign_attrs(RAIN[1])).assign_attrs(members="ensemble")


@pytest.fixture
def observed():
    rng = np.random.default_rng(1)
    times = np.datetime64("2020-06-01", "ns") + np.arange(HISTORY + INITS + LEADS) * np.timedelta64(5, "m")
    rain = rng.gamma(0.5, 2, (times.size, NY, NX)).astype(np.float32)
    rain[:, 0, :] = np.nan  # never observed
    rain[HISTORY + 2, 5, 5] = np.nan  # one cell, once
    metres = {"units": "m"}
    return xr.Dataset(
        {"rain_rate": (("time", "y", "x"), rain, RAIN[1])},
        {"time": times, "y": ("y", np.arange(NY) * 2000.0, metres), "x": ("x", np.arange(NX) * 2000.0, metres)},
    )


@pytest.fixture
def forecasts(observed):
    """Return forecasts that are right everywhere, and complete: 1 where the observation is missing for once."""
    inits = observed.time.values[HISTORY - 1 : HISTORY - 1 + INITS]
    leads = (np.arange(1, LEADS + 1) * np.timedelta64(5, "m")).astype("timedelta64[ns]")
    valid_time = inits[:, None] + leads
    index = np.searchsorted(observed.time.values, valid_time)
    values = np.nan_to_num(observed.rain_rate.values[index], nan=1.0)
    values[:, :, 0, :] = np.nan
    coords = {"init_time": inits, "lead_time": leads, "y": observed.y, "x": observed.x}
    dims = ("init_time", "lead_time", "y", "x")
    dataset = xr.Dataset({"rain_rate": (dims, values, RAIN[1])}, coords, {"model": "perfect"})
    return dataset.assign_coords(valid_time=(dims[:2], valid_time), spatial_ref=0)


def test_right_forecasts_score_perfectly_and_know_their_cells(forecasts, observed):
    sums = verify(forecasts, observed, options([2.0, 10.0]))
    scores = by_key(scores_of(sums))
    assert sums.attrs["model"] == "perfect"
    assert set(scores["rmse"].values()) == {0.0}
    assert set(scores["csi_2_mm_h"].values()) == set(scores["fss_0.5_mm_h_10_km"].values()) == {1.0}
    assert list(scores["rmse"]) == [5, 10, 15, 20]
    n = field_sums(sums, "rain_rate")["n"].values
    gap = np.add.outer(np.arange(INITS) + HISTORY - 1, np.arange(1, LEADS + 1)) == HISTORY + 2
    np.testing.assert_array_equal(n, (NY - 1) * NX - gap)


def test_infinite_values_are_named(forecasts, observed):
    observed.rain_rate[HISTORY + 1, 4, 4] = np.inf
    with pytest.raises(InputError, match=r"observations.zarr: rain_rate is inf at 2020-06-01T00:20:00"):
        verify(forecasts, observed, options())
    observed.rain_rate[HISTORY + 1, 4, 4] = 1.0
    forecasts.rain_rate[3, 2, 4, 4] = -np.inf
    for some in (forecasts, with_members(forecasts)):
        with pytest.raises(InputError, match="forecasts: rain_rate is -inf at 2020-06-01T00:40:00"):
            verify(some, observed, options())


def test_sums_that_are_no_numbers_are_not_written(forecasts, observed, tmp_path):
    sums = verify(forecasts, observed, options())
    sums["rain_rate.squared_error"][2, 1] = np.inf
    with pytest.raises(InputError, match=r"a.nc: rain_rate.squared_error is inf at init_time 2, lead_time 1 \(1 of 28"):
        write_sums(sums, tmp_path / "a.nc")
    assert not list(tmp_path.iterdir())


def test_blocks_of_one_init_time_give_the_same_sums(forecasts, observed, monkeypatch):
    whole = verify(forecasts, observed, options([10.0]))
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    xr.testing.assert_identical(verify(forecasts, observed, options([10.0])), whole)


def test_init_times_in_another_order_give_the_same_scores(forecasts, observed):
    shuffled = forecasts.isel(init_time=[4, 1, 0, 6, 5, 3, 2]) + 0.25
    for name in shuffled:
        shuffled[name].attrs = RAIN[1]
    expected = scores_of(verify(shuffled.sortby("init_time"), observed, options()))
    for name, by_lead in scores_of(verify(shuffled, observed, options())).items():
        assert by_lead == pytest.approx(expected[name], nan_ok=True)


def test_the_file_is_byte_identical_and_reads_back(forecasts, observed, climatology, tmp_path):
    made = with_members(forecasts)
    sums = verify(made, observed, options([2.0], west=Region(y=(0, 30000), x=(0, 9000))), climatology, RANGE)
    for name in ("a", "b"):
        write_sums(sums, tmp_path / name / "perfect.nc")
    assert (tmp_path / "a/perfect.nc").read_bytes() == (tmp_path / "b/perfect.nc").read_bytes()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["perfect.nc"]
    again = read_sums(tmp_path / "a/perfect.nc")
    xr.testing.assert_equal(again, sums)
    assert str(scores_of(again)) == str(scores_of(sums))  # as text NaN equals NaN


def test_a_field_without_thresholds_has_no_event_scores(forecasts, observed):
    scores = by_key(scores_of(verify(forecasts, observed, Verify(neighbourhoods_km=[10.0]))))
    assert list(scores) == [
        "rmse", "mae", "mean_error", "mse_frame", "correlation", "anomaly_correlation", "variance_ratio", "psnr",
        "ssim", "spectrum_ratio", "effective_resolution_km", "crps", "spread_skill", "coverage_90",
    ]  # fmt: skip


def test_two_fields_keep_their_scores_apart(forecasts, observed):
    warm = {"units": "K"}
    both = (
        data.assign(heat=(data.rain_rate + extra).assign_attrs(warm)) for data, extra in ((forecasts, 3), (observed, 1))
    )
    scores = by_key(scores_of(verify(*both, options())))
    assert set(scores["rain_rate/rmse"].values()) == {0.0}
    assert scores["heat/mean_error"][5] == pytest.approx(2.0)
    assert "heat/csi_2_k" not in scores


def test_a_hole_in_a_forecast_is_refused(forecasts, observed):
    forecasts.rain_rate[2, 1, 4, 4] = np.nan
    with pytest.raises(SchemaError, match=r"'rain_rate' of init time 2020-06-01T00:20.* lead 10 minutes in 1 cells"):
        verify(forecasts, observed, options())


def test_cells_without_a_forecast_count_nowhere(forecasts, observed):
    """A cell that was missing at init time may be missing in the forecast, and be observed later all the same."""
    whole = verify(forecasts, observed, options())
    observed.rain_rate[HISTORY - 1 + 2, 4, 4] = np.nan  # at the third init time
    forecasts.rain_rate[2, :, 4, 4] = np.nan
    sums = verify(forecasts, observed, options())
    for name in ("n", "hits", "squared_error"):
        if f"rain_rate.{name}" in sums:
            assert np.isfinite(sums[f"rain_rate.{name}"]).all(), name
    fewer = field_sums(whole, "rain_rate")["n"].values - field_sums(sums, "rain_rate")["n"].values
    assert (fewer[2] == 1).all()
    assert set(by_key(scores_of(sums))["rmse"].values()) == {0.0}


def test_what_does_not_fit_is_refused(forecasts, observed):
    with pytest.raises(InputError, match="no field \\['snow'\\]"):
        verify(forecasts, observed, Verify(thresholds={"snow": [1.0]}))
    with pytest.raises(SchemaError, match="different grids: 'x'"):
        verify(forecasts.assign_coords(x=forecasts.x + 1), observed, Verify())
    with pytest.raises(SchemaError, match="no frame at"):
        verify(forecasts, observed.isel(time=slice(0, -2)), Verify())
    with pytest.raises(SchemaError, match="forecast in 'mm h-1' and observed in 'K'"):
        verify(forecasts, observed.assign(rain_rate=observed.rain_rate.assign_attrs(units="K")), Verify())
    bare = [data.assign_coords(x=np.arange(NX), y=np.arange(NY)) for data in (forecasts, observed)]
    with pytest.raises(InputError, match="neighbourhoods_km and verify"):
        verify(*bare, options([10.0]))


@pytest.fixture
def climatology():
    maps = np.random.default_rng(2).random((24, NY, NX)).astype(np.float32)
    return xr.Dataset({"rain_rate": (("hour", "y", "x"), maps)})


@pytest.mark.parametrize("count", [0, 5])
def test_blocks_of_any_size_anywhere_give_the_same_sums(forecasts, observed, climatology, count, monkeypatch):
    made = with_members(forecasts, count) if count else forecasts
    west = Region(y=(0, 30000), x=(0, 9000))
    whole = verify(made, observed, options([10.0], west=west), climatology, RANGE)
    for size, scheduler in ((1, "synchronous"), (2 * made.rain_rate[0, 0].nbytes, None), (2**30, "synchronous")):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", size)
        again = verify(made, observed, options([10.0], west=west), climatology, RANGE, scheduler)
        xr.testing.assert_allclose(again, whole, rtol=1e-12)


def test_all_models_have_the_same_scores_and_references_no_spread(forecasts, observed, climatology):
    one = by_key(scores_of(verify(forecasts, observed, options([2.0]), climatology, RANGE)))
    many = by_key(scores_of(verify(with_members(forecasts), observed, options([2.0]), climatology, RANGE)))
    assert list(one) == list(many)
    undefined = {name for name in one if np.isnan(list(one[name].values())).all()}
    assert undefined == {"psnr", "spread_skill", "coverage_90", "sedi_0.5_mm_h", "sedi_2_mm_h"}
    assert one["crps"] == one["mae"]
    assert many["coverage_90"] == dict.fromkeys((5, 10, 15, 20), 1.0)
    assert many["crps"][5] == pytest.approx(np.abs(np.arange(-2, 3) / 4).mean() - 0.2)  # half the mean difference: 0.2


def test_the_mean_over_members_is_the_forecast(forecasts, observed):
    sums, attrs = verify(with_members(forecasts), observed, options()), "ensemble"
    assert sums.attrs["members"] == attrs
    one, many = (field_sums(it, "rain_rate") for it in (verify(forecasts, observed, options()), sums))
    for name in ("n", "valid_crc", "weight", "hits", "observed"):
        np.testing.assert_array_equal(one[name], many[name])
    np.testing.assert_allclose(many["squared_error"], one["squared_error"], atol=1e-9)


def test_a_hole_in_one_member_is_a_hole(forecasts, observed):
    made = with_members(forecasts)
    made.rain_rate[2, 1, 3, 4, 4] = np.nan
    with pytest.raises(SchemaError, match="lead 10 minutes in 1 cells"):
        verify(made, observed, options())


def test_a_region_is_scored_as_the_grid_cut_down_to_it(forecasts, observed):
    wrong = forecasts.assign(rain_rate=(forecasts.rain_rate * 1.5).assign_attrs(RAIN[1]))
    sums = verify(
        wrong, observed, options(middle=Region(y=(6000, 12000), x=(20000, 8000)), all=Region(y=(0, 1e9), x=(0, 1e9)))
    )
    regions = by_region(field_sums(sums, "rain_rate"))
    cut = {"y": slice(3, 7), "x": slice(4, 11)}
    alone = field_sums(verify(wrong.isel(cut), observed.isel(cut), options()), "rain_rate")
    np.testing.assert_allclose(rmse(regions["middle"]), rmse(alone), rtol=1e-12)
    np.testing.assert_array_equal(regions["middle"]["hits"], alone["hits"])
    np.testing.assert_allclose(rmse(regions["all"]), rmse(field_sums(sums, "rain_rate")), rtol=1e-12)


def test_a_region_off_the_grid_is_refused(forecasts, observed):
    with pytest.raises(InputError, match=r"verify.regions.sea.x is \[-9.0, -1.0\].* within 0 to 24000 m"):
        verify(forecasts, observed, options(sea=Region(y=(0, 4000), x=(-9, -1))))


def test_cells_of_degrees_count_by_their_area(forecasts, observed):
    degrees = {"units": "degrees_north"}
    globe = [
        data.assign_coords(y=("y", np.linspace(80, 0, NY), degrees), x=("x", np.arange(NX), degrees))
        for data in (forecasts, observed)
    ]
    globe[0] = globe[0].assign(rain_rate=globe[0].rain_rate.where(globe[0].y > 40, globe[0].rain_rate + 1))
    globe[0].rain_rate.attrs = RAIN[1]
    scores = by_key(scores_of(verify(*globe, options())))
    cosine = np.cos(np.deg2rad(np.linspace(80, 0, NY)))[1:]  # the first row was never observed
    assert scores["mean_error"][5] == pytest.approx(cosine[4:].sum() / cosine.sum(), rel=1e-3)


def test_memory_does_not_grow_with_the_archive(observed, forecasts, monkeypatch):
    wide = {"y": np.arange(66) % NY, "x": np.arange(65) % NX}
    axes = {name: (name, np.arange(size.size) * 2000.0, {"units": "m"}) for name, size in wide.items()}
    made, seen = (data.isel(wide).assign_coords(axes) for data in (forecasts, observed))
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 2 * made.rain_rate[0].nbytes)
    verify(made, seen, options([10.0]), None, RANGE)  # what is imported once
    peaks = []
    for inits in (8, 80):
        archive = made.isel(init_time=np.arange(inits) % INITS)
        tracemalloc.start()
        sums = verify(archive, seen, options([10.0]), None, RANGE)
        peaks.append(tracemalloc.get_traced_memory()[1] - 2 * sums.nbytes)  # of the blocks and joined
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]
    assert peaks[1] < archive.rain_rate.nbytes


def test_jobs_for_a_cluster_carry_no_fields(forecasts, observed, tmp_path):
    """A lazily opened store is pickled as its path, so that workers read their own blocks."""
    for name, data in (("forecasts", forecasts), ("observed", observed)):
        data.to_zarr(tmp_path / name, consolidated=False)
    made, seen = (xr.open_zarr(tmp_path / name, chunks=None, consolidated=False) for name in ("forecasts", "observed"))
    assert len(pickle.dumps((made.rain_rate, seen.rain_rate))) < forecasts.rain_rate.nbytes
    xr.testing.assert_identical(verify(made, seen, options()), verify(forecasts, observed, options()))


@pytest.mark.slow
def test_on_a_dask_cluster(forecasts, observed, tmp_path):
    from distributed import LocalCluster

    for name, data in (("forecasts", forecasts), ("observed", observed)):
        data.to_zarr(tmp_path / name, consolidated=False)
    made, seen = (xr.open_zarr(tmp_path / name, chunks=None, consolidated=False) for name in ("forecasts", "observed"))
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster:
        far = verify(made, seen, options(), scheduler=cluster.scheduler_address)
    xr.testing.assert_identical(far, verify(forecasts, observed, options()))
