import hashlib
import warnings

import numpy as np
import pytest
import xarray as xr
import zarr

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.atomic import replacing
from fieldcast.pipeline.datasets.schema import check_forecasts, field_names, lead_minutes
from fieldcast.pipeline.errors import InputError, SchemaError
from tests.datasets.conftest import FRAMES, HEIGHT, SHARD, TIMES, WIDTH, block, write

LEADS = np.arange(1, 5) * np.timedelta64(10, "m").astype("timedelta64[ns]")


def test_observations_round_trip(tmp_path, grid, rain):
    write(tmp_path / "a.zarr", grid, rain)
    back = store.open_observations(tmp_path / "a.zarr")
    np.testing.assert_array_equal(back.rain_rate.values, rain)
    np.testing.assert_array_equal(back.time.values, TIMES)
    np.testing.assert_array_equal(back.frame_present.values, np.arange(FRAMES) != 4)
    assert back.frame_present.dtype == bool
    assert back.rain_rate.attrs == grid.rain_rate.attrs
    assert back.spatial_ref.attrs == {"crs_wkt": "WKT"}
    assert back.y.attrs == {"units": "km"}
    assert back.attrs == {"Conventions": "CF-1.11", "title": "T"}


def test_variables_come_back_in_the_order_of_the_store(tmp_path, grid, rain):
    two = grid.rename(rain_rate="wind").assign(a=grid.rain_rate)
    for names in (["wind", "a"], ["a", "wind"]):
        path = tmp_path / f"{names[0]}.zarr"
        store.create_observations(path, two[names], TIMES, np.ones(FRAMES, bool), SHARD)
        store.add_refused(path, {"a": np.zeros(FRAMES)})
        store.finish(path)
        back = store.open_observations(path)
        assert field_names(back) == names
        assert back.attrs == {"Conventions": "CF-1.11", "title": "T"}  # how the order is kept is the store's own affair
        forecasts = tmp_path / f"{names[0]}_forecasts.zarr"
        store.create_forecasts(forecasts, store.forecast_grid(back, names), TIMES[:2], LEADS, 2, {})
        store.finish(forecasts)
        assert field_names(store.open_forecasts(forecasts)) == names


def test_zero_is_a_value_and_what_was_never_written_is_missing(tmp_path, grid, rain):
    store.create_observations(tmp_path / "a.zarr", grid, TIMES, np.arange(FRAMES) != 4, SHARD)
    store.write_block(tmp_path / "a.zarr", 0, block(np.zeros_like(rain[:SHARD]), "time"))
    store.finish(tmp_path / "a.zarr")
    back = store.open_observations(tmp_path / "a.zarr").rain_rate.values
    assert (back[:SHARD] == 0).all()
    assert np.isnan(back[SHARD:]).all()


def test_frames_never_written_are_missing(tmp_path, grid, rain):
    path = tmp_path / "a.zarr"
    store.create_observations(path, grid, TIMES, np.ones(FRAMES, bool), SHARD)
    store.write_block(path, SHARD, block(rain[SHARD : 2 * SHARD], "time"))
    store.finish(path)
    back = store.open_observations(path).rain_rate.values
    assert np.isnan(back[:SHARD]).all()
    assert np.isnan(back[2 * SHARD :]).all()
    np.testing.assert_array_equal(back[SHARD : 2 * SHARD], rain[SHARD : 2 * SHARD])


@pytest.mark.parametrize(("fields", "frames"), [(0.5, 1), (1, 1), (SHARD - 1, 1), (SHARD, SHARD), (1000, SHARD)])
def test_layout_is_the_frames_that_fit_a_chunk_and_a_file_a_shard(tmp_path, monkeypatch, grid, rain, fields, frames):
    monkeypatch.setattr(store, "CHUNK_BYTES", int(4 * HEIGHT * WIDTH * fields))
    write(tmp_path / "a.zarr", grid, rain)
    np.testing.assert_array_equal(store.open_observations(tmp_path / "a.zarr").rain_rate.values, rain)
    array = zarr.open_array(tmp_path / "a.zarr" / "rain_rate", mode="r")
    assert array.chunks == (frames, HEIGHT, WIDTH)  # a shard is whole chunks
    assert array.shards == (SHARD, HEIGHT, WIDTH)
    assert np.isnan(array.fill_value)
    times = zarr.open_array(tmp_path / "a.zarr" / "time", mode="r")
    assert times.chunks == (FRAMES,)
    assert times.dtype == np.int64
    assert times.attrs["units"] == "seconds since 1970-01-01"
    assert len([file for file in (tmp_path / "a.zarr" / "rain_rate" / "c").rglob("*") if file.is_file()]) == 4


def test_dask_blocks_are_whole_shards(tmp_path, grid, rain):
    write(tmp_path / "a.zarr", grid, rain)
    lazy = store.open_observations(tmp_path / "a.zarr", chunks="shards")
    assert lazy.rain_rate.chunks == ((3, 3, 3, 2), (HEIGHT,), (WIDTH,))
    np.testing.assert_array_equal(lazy.rain_rate.values, rain)
    assert store.open_observations(tmp_path / "a.zarr").rain_rate.chunks is None


@pytest.mark.parametrize(("start", "stop"), [(1, 4), (0, 2), (9, 10), (9, 12)])
def test_blocks_across_shards_are_refused(tmp_path, grid, start, stop):
    store.create_observations(tmp_path / "a.zarr", grid, TIMES, np.ones(FRAMES, bool), SHARD)
    values = np.zeros((stop - start, HEIGHT, WIDTH), np.float32)
    with pytest.raises(ValueError, match=rf"block \[{start}, {stop}\) is not on borders of shards of 3 in 11"):
        store.write_block(tmp_path / "a.zarr", start, block(values, "time"))


def test_blocks_of_other_variables_or_types_are_refused(tmp_path, grid, rain):
    store.create_observations(tmp_path / "a.zarr", grid, TIMES, np.ones(FRAMES, bool), SHARD)
    with pytest.raises(ValueError, match="block has variables"):
        store.write_block(tmp_path / "a.zarr", 0, block(rain[:3], "time").rename(rain_rate="snow"))
    with pytest.raises(ValueError, match="'rain_rate' is float64"):
        store.write_block(tmp_path / "a.zarr", 0, block(rain[:3].astype(float), "time"))


def test_encoding_of_the_source_does_not_leak(tmp_path, grid, rain):
    grid["rain_rate"].encoding = {"dtype": "int16", "scale_factor": 0.5, "chunks": (2, 2, 2)}
    grid["y"].encoding = {"dtype": "int8"}
    write(tmp_path / "a.zarr", grid, rain)
    np.testing.assert_array_equal(store.open_observations(tmp_path / "a.zarr").rain_rate.values, rain)


def test_forecasts_round_trip(tmp_path, grid):
    path = tmp_path / "f.zarr"
    values = np.random.default_rng(1).random((FRAMES, LEADS.size, HEIGHT, WIDTH), np.float32)
    store.create_forecasts(path, grid, TIMES, LEADS, SHARD, {"model": "persistence"})
    for start in range(0, FRAMES, SHARD):
        store.write_block(path, start, block(values[start : start + SHARD], "init_time", "lead_time"))
    store.finish(path)
    back = store.open_forecasts(path)
    np.testing.assert_array_equal(back.rain_rate.values, values)
    assert back.lead_time.dtype == np.dtype("timedelta64[ns]")
    np.testing.assert_array_equal(back.lead_time.values, LEADS)
    np.testing.assert_array_equal(back.valid_time.values, TIMES[:, None] + LEADS)
    assert back.attrs["model"] == "persistence"
    leads = zarr.open_array(path / "lead_time", mode="r")
    assert (leads.dtype, leads.attrs["units"]) == (np.int32, "minutes")
    assert zarr.open_array(path / "rain_rate", mode="r").shards == (SHARD, LEADS.size, HEIGHT, WIDTH)


def test_contract_is_checked_on_the_way_in_and_out(tmp_path, grid, rain):
    with pytest.raises(SchemaError, match="not regular"):
        store.create_observations(tmp_path / "a.zarr", grid, TIMES[[0, 1, 3]], np.ones(3, bool), 1)
    write(tmp_path / "b.zarr", grid, rain)
    with pytest.raises(SchemaError, match="init_time"):
        store.open_forecasts(tmp_path / "b.zarr")
    with pytest.raises(InputError, match="no such store"):
        store.open_observations(tmp_path / "nowhere.zarr")


def test_replacing_shows_a_store_only_when_complete(tmp_path, grid, rain):
    path = tmp_path / "a.zarr"
    with replacing(path) as partial:
        write(partial, grid, rain)
        assert not path.exists()
    with pytest.raises(ValueError, match="borders of shards"), replacing(path) as partial:
        store.write_block(path, 1, block(rain[1:2], "time"))
    np.testing.assert_array_equal(store.open_observations(path).rain_rate.values, rain)
    with replacing(path) as partial:
        write(partial, grid, 2 * rain)
    np.testing.assert_array_equal(store.open_observations(path).rain_rate.values, 2 * rain)
    assert [it.name for it in tmp_path.iterdir()] == ["a.zarr"]


def test_equal_content_has_equal_bytes(tmp_path, grid, rain):
    write(tmp_path / "a.zarr", grid, rain)
    write(tmp_path / "b.zarr", grid, rain)
    assert store.directory_digest(tmp_path / "a.zarr") == store.directory_digest(tmp_path / "b.zarr")
    changed = rain.copy()
    changed[0, 0, 0] += 1
    write(tmp_path / "b.zarr", grid, changed)
    assert store.directory_digest(tmp_path / "a.zarr") != store.directory_digest(tmp_path / "b.zarr")


def test_directory_digest_by_hand(tmp_path):
    (tmp_path / "d" / "sub").mkdir(parents=True)
    (tmp_path / "d" / "b").write_bytes(b"2")
    (tmp_path / "d" / "sub" / "a").write_bytes(b"1")
    one, two = (hashlib.md5(data).hexdigest() for data in (b"1", b"2"))
    listing = f'[{{"md5": "{two}", "relpath": "b"}}, {{"md5": "{one}", "relpath": "sub/a"}}]'
    assert store.directory_digest(tmp_path / "d") == hashlib.md5(listing.encode()).hexdigest() + ".dir"


def test_directory_digest_is_dvcs(tmp_path, grid, rain):
    write(tmp_path / "a.zarr", grid, rain)
    from dvc.repo import Repo  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Repo.init(str(tmp_path), no_scm=True) as repo:
            repo.add(str(tmp_path / "a.zarr"))
    assert f"md5: {store.directory_digest(tmp_path / 'a.zarr')}\n" in (tmp_path / "a.zarr.dvc").read_text()


def test_forecasts_with_members_round_trip(tmp_path, grid):
    inits = TIMES[:3]
    draws = np.random.default_rng(0)
    values = draws.normal(size=(3, len(LEADS), 2, HEIGHT, WIDTH)).astype(np.float32)
    path = tmp_path / "f.zarr"
    store.create_forecasts(path, grid, inits, LEADS, 2, {"members": "ensemble"}, members=2)
    for start in (0, 2):
        store.write_block(path, start, block(values[start : start + 2], "init_time", "lead_time", "member"))
    store.finish(path)
    back = store.open_forecasts(path)
    np.testing.assert_array_equal(back.rain_rate.values, values)
    assert back.rain_rate.dims == ("init_time", "lead_time", "member", "y", "x")
    assert back.member.values.tolist() == [1, 2]
    assert back.attrs["members"] == "ensemble"
    array = zarr.open_array(path / "rain_rate", mode="r")
    assert array.chunks == (1, len(LEADS), 2, HEIGHT, WIDTH)  # all leads and members of an init time
    assert array.shards == (2, len(LEADS), 2, HEIGHT, WIDTH)


def test_members_count_from_one_in_all_fields(tmp_path, grid):
    path = tmp_path / "f.zarr"
    store.create_forecasts(path, grid, TIMES[:3], LEADS, 2, {}, members=2)
    store.finish(path)
    forecasts = store.open_forecasts(path)
    with pytest.raises(SchemaError, match="'member' is not 1 to 2"):
        check_forecasts(forecasts.assign_coords(member=[0, 1]))
    with pytest.raises(SchemaError, match="'wind' has dimensions"):
        check_forecasts(forecasts.assign(wind=forecasts["rain_rate"].isel(member=0, drop=True)))


def test_leads_of_seconds_come_back_exact(tmp_path, grid):
    leads = np.arange(1, 4) * np.timedelta64(90, "s").astype("timedelta64[ns]")
    store.create_forecasts(tmp_path / "f.zarr", grid, np.array([np.datetime64("2020-01-01", "ns")]), leads, 1, {})
    store.finish(tmp_path / "f.zarr")
    forecasts = store.open_forecasts(tmp_path / "f.zarr")
    np.testing.assert_array_equal(forecasts.lead_time.values, leads)
    assert lead_minutes(forecasts) == [1.5, 3, 4.5]


@pytest.mark.parametrize(
    ("sizes", "chunk"),
    [
        ({"time": 4296, "y": 64, "x": 64}, (32, 64, 64)),
        ({"time": 4296, "y": 765, "x": 700}, (1, 765, 700)),
        ({"init_time": 130, "lead_time": 12, "y": 64, "x": 64}, (1, 12, 64, 64)),
        ({"init_time": 130, "lead_time": 12, "member": 10, "y": 64, "x": 64}, (1, 3, 10, 64, 64)),
        ({"init_time": 130, "lead_time": 7, "member": 10, "y": 64, "x": 64}, (1, 1, 10, 64, 64)),
    ],
)
def test_chunks_hold_half_a_megabyte_at_most_or_one_field(sizes, chunk):
    assert store._chunks(sizes, 288) == chunk


def test_plain_xarray_opens_stores_without_a_warning_and_in_large_blocks(tmp_path, grid, rain):
    write(tmp_path / "a.zarr", grid, rain)
    store.create_forecasts(tmp_path / "f.zarr", grid, TIMES[:3], LEADS, 2, {})
    store.finish(tmp_path / "f.zarr")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observed, forecasts = xr.open_zarr(tmp_path / "a.zarr"), xr.open_zarr(tmp_path / "f.zarr")
    np.testing.assert_array_equal(observed.rain_rate.values, rain)
    assert observed.rain_rate.data.npartitions == -(-FRAMES // SHARD)
    assert forecasts.rain_rate.data.npartitions == 3
