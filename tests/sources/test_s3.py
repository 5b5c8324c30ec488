"""Archives behind s3:// addresses, read from a server on this machine."""

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import xarray as xr
from moto.server import ThreadedMotoServer

from fieldcast.pipeline.config.sources import GriddedOptions, IngestOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.ingest import ingest

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


def fields() -> xr.Dataset:
    values = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    times = np.datetime64("2020-01-01", "ns") + np.arange(2) * np.timedelta64(1, "h")
    coords = {
        "time": times,
        "y": ("y", np.arange(3.0), {"units": "km"}),
        "x": ("x", np.arange(4.0), {"units": "km"}),
    }
    return xr.Dataset({"t2m": (("time", "y", "x"), values, {"units": "K"})}, coords)


def test_zarr_and_netcdf_on_s3(server: str, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    options = {"key": "testing", "secret": "testing", "client_kwargs": {"endpoint_url": server}}
    files = s3fs.S3FileSystem(**options, skip_instance_cache=True)
    files.mkdir("archive-bucket")
    fields().to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    fields().to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    files.put(str(tmp_path / "a.nc"), "archive-bucket/a.nc")
    files.put(str(tmp_path / "a.zarr"), "archive-bucket/a.zarr", recursive=True)
    for name in ("a.nc", "a.zarr"):
        source = GriddedOptions(
            path=f"s3://archive-bucket/{name}",
            variables=["t2m"],
            storage_options=options,
            download_folder=tmp_path / "downloads",
        )
        ingest(source, IngestOptions(), tmp_path / f"{name}-store")
        stored = store.open_observations(tmp_path / f"{name}-store")
        np.testing.assert_array_equal(stored["t2m"].values, fields()["t2m"].values)


def test_a_server_that_is_down_is_one_line() -> None:
    code = """
from fieldcast.pipeline.config.sources import GriddedOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source
down = {"client_kwargs": {"endpoint_url": "http://127.0.0.1:9"}, "config_kwargs": {"retries": {"max_attempts": 1}}}
try:
    options = {"anon": True, **down}
    inspect_source(GriddedOptions(path="s3://bucket/a.zarr", variables=["t"], storage_options=options))
except InputError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("s3://bucket/a.zarr: cannot be opened as zarr (Could not connect to the endpoint")
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
