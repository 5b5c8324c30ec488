"""Children that decode: what a file can do to them costs that file alone."""

import os
import signal
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Semaphore

import numpy as np
import psutil
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import Decoding, RadarOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import decoder, open_source
from fieldcast.pipeline.sources.decoder import SlowError, decode, within

BOUNDS = Decoding(max_seconds=60, max_megabytes=64)


def fill_memory() -> int:
    return np.ones(2**27).nbytes  # a gigabyte


def wrapped_memory_error() -> None:
    try:
        fill_memory()
    except MemoryError as error:
        raise InputError("a.nc: cannot be opened") from error


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def refuse() -> None:
    raise InputError("a.nc: no field")


def unpicklable_error() -> None:
    raise zlib.error("line one\nline two")


def test_arrays_and_labels_come_back_and_a_child_goes_on_from_file_to_file():
    values = np.arange(6.0).reshape(2, 3)
    result = decode("a.nc", BOUNDS, xr.DataArray, values, {"x": [1, 2, 3]}, ("y", "x"))
    xr.testing.assert_identical(result, xr.DataArray(values, {"x": [1, 2, 3]}, ("y", "x")))
    pids = {decode("a.nc", BOUNDS, os.getpid) for _ in range(3)}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_a_child_works_where_its_parent_does(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert decode("a.nc", BOUNDS, Path.cwd) == tmp_path


@pytest.mark.parametrize(
    ("work", "message"),
    [
        (fill_memory, "a.nc: needs more than 64 MB to be decoded: take the file out or raise decoding.max_megabytes"),
        (wrapped_memory_error, "a.nc: needs more than 64 MB to be decoded"),
        (crash, "a.nc: its decoder was ended by it .SIGSEGV.: replace the file"),
        (refuse, "^a.nc: no field$"),
        (unpicklable_error, "a.nc: cannot be decoded .line one line two.: replace the file"),
    ],
)
def test_what_goes_wrong_in_a_child_is_an_error_about_the_file(work, message):
    with pytest.raises(InputError, match=message):
        decode("a.nc", BOUNDS, work)
    assert decode("b.nc", BOUNDS, int, "3") == 3


def test_a_bound_of_memory_ends_with_its_file():
    assert decode("a.nc", Decoding(max_megabytes=16), int, "3") == 3
    assert decode("b.nc", BOUNDS, len, bytes(2**25)) == 2**25  # received before its own bound


def test_a_child_that_takes_long_is_ended():
    pid = decode("a.nc", BOUNDS, os.getpid)
    started = time.monotonic()
    with within(0.2), pytest.raises(SlowError, match=r"a.nc: not decoded in 0.2 s: .* raise decoding.max_seconds"):
        decode("a.nc", BOUNDS, time.sleep, 60)
    assert time.monotonic() - started < 10
    assert not psutil.pid_exists(pid)


def test_a_child_whose_parent_is_gone_ends_by_itself():
    child = decoder.Child()
    child._connection.send(("a.nc", "/", 0.01, 64, (time.sleep, (60,))))
    assert child._process.wait(20) == -signal.SIGALRM
    child.end()


def test_a_process_has_no_more_children_than_it_may(monkeypatch):
    monkeypatch.setattr(decoder, "_slots", {os.getpid(): Semaphore(1)})
    with ThreadPoolExecutor(4) as pool:
        pids = set(pool.map(lambda _: decode("a.nc", BOUNDS, os.getpid), range(8)))
    assert len(pids) == 1


def test_a_bomb_in_an_archive_is_refused_by_name(tmp_path):
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    body = b"".join([compressor.compress(bytes(2**22)) for _ in range(64)] + [compressor.flush()])
    (tmp_path / "bomb.pgm.gz").write_bytes(body)
    source = open_source(RadarOptions(path=str(tmp_path), format="fmi", decoding=BOUNDS))
    with pytest.raises(InputError, match=r"bomb.pgm.gz: needs more than 64 MB to be decoded"):
        source.segments()
