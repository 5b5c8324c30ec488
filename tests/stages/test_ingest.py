import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from distributed import LocalCluster

from fieldcast.pipeline.config.sources import GriddedOptions, IngestOptions, StormsOptions
from fieldcast.pipeline.datasets import parallel, store
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.ingest import ingest

STORMS = StormsOptions(events=3, event_minutes=60, event_every_minutes=90, cells=16)
SMALL = IngestOptions(shard_frames=7)
START = np.datetime64("2020-01-01", "ns")


def write(folder: Path, name: str, minutes: list[int], fields: np.ndarray, units: str = "mm h-1") -> None:
    """Write one NetCDF file of fields (time, y, x)."""
    folder.mkdir(exist_ok=True)
    coords = {"time": START + np.array(minutes) * np.timedelta64(1, "m")}
    coords |= {
        axis: (axis, np.arange(size) * 1.0, {"units": "km"}) for axis, size in zip("yx", fields.shape[1:], strict=True)
    }
    rain = (("time", "y", "x"), fields.astype(np.float32), {"units": units})
    xr.Dataset({"rain_rate": rain}, coords).to_netcdf(folder / name, engine="h5netcdf")


def gridded(folder: Path, **more: object) -> GriddedOptions:
    return GriddedOptions.model_validate({"path": str(folder), "variables": ["rain_rate"], **more})


def numbered(frames: int, height: int = 2, width: int = 3) -> np.ndarray:
    return np.arange(frames * height * width, dtype=np.float32).reshape(frames, height, width)


def observed(out: Path) -> xr.Dataset:
    return store.open_observations(out).load()


def test_missing_frames_and_cells_are_nan(tmp_path):
    fields = numbered(3)
    fields[1, 0, 2] = np.nan
    write(tmp_path / "raw", "a.nc", [0, 5, 20], fields)
    ingest(gridded(tmp_path / "raw"), SMALL, tmp_path / "o.zarr")
    back = observed(tmp_path / "o.zarr")
    expected = np.full((5, 2, 3), np.nan, np.float32)
    expected[[0, 1, 4]] = fields
    np.testing.assert_array_equal(back.rain_rate.values, expected)
    np.testing.assert_array_equal(back.frame_present.values, [True, True, False, False, True])
    assert back.rain_rate.attrs == {"units": "mm h-1"}


def test_crop_coarsening_step_and_period(tmp_path):
    fields = numbered(6, height=4, width=6)
    write(tmp_path / "raw", "a.nc", [0, 5, 10, 15, 20, 25], fields)
    source = gridded(
        tmp_path / "raw",
        crop={"y": [0, 4], "x": [1, 5]},
        coarsen=2,
        step_minutes=10,
        period=["2020-01-01T00:05", "2020-01-01T00:25"],
    )
    ingest(source, SMALL, tmp_path / "o.zarr")
    back = observed(tmp_path / "o.zarr")
    expected = fields[[1, 3, 5], :, 1:5].reshape(3, 2, 2, 2, 2).mean(axis=(2, 4))
    np.testing.assert_array_equal(back.rain_rate.values, expected)
    np.testing.assert_array_equal(back.x, [1.5, 3.5])
    assert back.time.values[0] == START + np.timedelta64(5, "m")


@pytest.mark.parametrize(
    ("rule", "expected"), [("first", [1, np.nan, 3]), ("last", [np.nan, 20, 30]), ("merge", [1, 20, 3])]
)
def test_duplicates_by_rule(tmp_path, rule, expected):
    write(tmp_path / "raw", "a.nc", [0, 5], np.array([[[0, 0, 0]], [[1, np.nan, 3]]]))
    write(tmp_path / "raw", "b.nc", [5, 10], np.array([[[np.nan, 20, 30]], [[9, 9, 9]]]))
    ingest(gridded(tmp_path / "raw"), IngestOptions(duplicates=rule, shard_frames=2), tmp_path / "o.zarr")
    np.testing.assert_array_equal(observed(tmp_path / "o.zarr").rain_rate.values[1, 0], expected)


def test_files_out_of_order_are_refused_or_sorted(tmp_path):
    write(tmp_path / "raw", "a.nc", [10, 15], numbered(4)[2:])
    write(tmp_path / "raw", "b.nc", [0, 5], numbered(4)[:2])
    with pytest.raises(InputError, match=r"set ingest\.out_of_order to sort"):
        ingest(gridded(tmp_path / "raw"), SMALL, tmp_path / "o.zarr")
    ingest(gridded(tmp_path / "raw"), IngestOptions(out_of_order="sort", shard_frames=3), tmp_path / "o.zarr")
    np.testing.assert_array_equal(observed(tmp_path / "o.zarr").rain_rate.values, numbered(4))


def test_shards_do_not_show_in_the_values(tmp_path):
    stores = []
    for shard in (1, 7, 1000):
        ingest(STORMS, IngestOptions(shard_frames=shard), tmp_path / f"{shard}.zarr")
        stores.append(observed(tmp_path / f"{shard}.zarr"))
    xr.testing.assert_identical(stores[0], stores[1])
    xr.testing.assert_identical(stores[0], stores[2])
    assert stores[0].sizes["time"] == 2 * 18 + 12
    assert int(stores[0].frame_present.sum()) == 36


def test_ingest_twice_gives_the_same_bytes(tmp_path):
    ingest(STORMS, SMALL, tmp_path / "a.zarr")
    ingest(STORMS, SMALL, tmp_path / "b.zarr", scheduler="synchronous")
    ingest(STORMS, SMALL, tmp_path / "b.zarr")
    assert store.directory_digest(tmp_path / "a.zarr") == store.directory_digest(tmp_path / "b.zarr")
    assert sorted(it.name for it in tmp_path.iterdir()) == ["a.zarr", "b.zarr"]


def test_a_cluster_writes_the_same_bytes_as_threads(tmp_path):
    ingest(STORMS, SMALL, tmp_path / "a.zarr")
    with LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, protocol="tcp", dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        ingest(STORMS, SMALL, tmp_path / "b.zarr", scheduler=cluster.scheduler_address)
    assert store.directory_digest(tmp_path / "a.zarr") == store.directory_digest(tmp_path / "b.zarr")


def test_memory_is_bounded_by_batches(tmp_path, monkeypatch):
    """However many shards there are, dask sees at most two a worker at a time."""
    batches = []
    compute = parallel.compute

    def counted(*tasks: object, scheduler: object) -> object:
        batches.append(len(tasks))
        return compute(*tasks, scheduler=scheduler)

    monkeypatch.setattr(parallel, "compute", counted)
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 2)
    ingest(STORMS, IngestOptions(shard_frames=4), tmp_path / "a.zarr")
    assert batches == [4, 4, 4]


def test_an_archive_without_a_value_is_refused(tmp_path):
    write(tmp_path / "raw", "a.nc", [0, 5], np.full((2, 2, 3), np.nan))
    with pytest.raises(InputError, match="every cell of all 2 frames is missing"):
        ingest(gridded(tmp_path / "raw"), SMALL, tmp_path / "o.zarr")
    assert [it.name for it in tmp_path.iterdir()] == ["raw"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"fields": numbered(2, width=4)}, "b.nc: the grid is 2 x 4 cells"),
        ({"fields": numbered(2), "units": "dBZ"}, "b.nc: 'rain_rate' has units 'dBZ', expected 'mm h-1'"),
    ],
)
def test_mixed_archives_leave_nothing_behind(tmp_path, second, message):
    write(tmp_path / "raw", "a.nc", [0, 5], numbered(2))
    write(tmp_path / "raw", "b.nc", [10, 15], **second)
    with pytest.raises(InputError, match=message):
        ingest(gridded(tmp_path / "raw"), SMALL, tmp_path / "o.zarr")
    assert [it.name for it in tmp_path.iterdir()] == ["raw"]


def test_a_killed_ingest_leaves_no_half_store_and_can_be_repeated(tmp_path):
    out = tmp_path / "o.zarr"
    many = STORMS.model_copy(update={"events": 400})
    code = (
        "import sys; from pathlib import Path; from fieldcast.pipeline.ingest import ingest\n"
        "from fieldcast.pipeline.config.sources import IngestOptions, StormsOptions\n"
        "ingest(StormsOptions.model_validate_json(sys.argv[1]), IngestOptions(shard_frames=7), Path(sys.argv[2]))"
    )
    child = subprocess.Popen([sys.executable, "-c", code, many.model_dump_json(), str(out)])
    partial = tmp_path / ".o.zarr.partial"
    deadline = time.monotonic() + 60
    while not (partial / "rain_rate" / "c").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert partial.exists()
    assert not out.exists()
    ingest(STORMS, SMALL, out)
    ingest(STORMS, SMALL, tmp_path / "undisturbed.zarr")
    assert store.directory_digest(out) == store.directory_digest(tmp_path / "undisturbed.zarr")
    assert sorted(it.name for it in tmp_path.iterdir()) == ["o.zarr", "undisturbed.zarr"]
