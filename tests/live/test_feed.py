"""Feeds behind addresses, from servers on this machine, and Zarr stores."""

import contextlib
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import fsspec
import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.clock import SystemClock
from fieldcast.pipeline.live.feed.limits import FeedRules
from fieldcast.pipeline.live.feed.poll import UnavailableError, address, has_codes, public, within
from fieldcast.pipeline.sources.files import listed
from tests.live import feeds
from tests.live.clocks import SimulatedClock
from tests.live.feeds import LATER, START, at, bom, contract, gridded, ingested, live_of, require_equal

WHOLE = (START, LATER)
TENS = [0, 10, 20, 30]


class Server:
    """A web server of one folder that records requests, and can be made to misbehave."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: list[tuple[str, int]] = []
        self.declared = 0  # bytes more than are sent
        self.length = True  # of the content is told
        self.validators = True
        self.stalled = Event()
        self.stalled.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # who asked has hung up
                    server.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = Thread(target=partial(self._http.serve_forever, poll_interval=0.01))
        self._thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        self.stalled.wait(20)
        path = self.folder / request.path.partition("?")[0].lstrip("/")
        if not path.is_file():
            self.answers.append((request.path, 404))
            request.send_error(404)
            return
        content, tag = path.read_bytes(), f'"{path.stat().st_mtime_ns}"'
        if self.validators and request.headers.get("If-None-Match") == tag:
            self.answers.append((request.path, 304))
            request.send_response(304)
            request.end_headers()
            return
        self.answers.append((request.path, 200))
        request.send_response(200)
        if self.length:
            request.send_header("Content-Length", str(len(content) + self.declared))
        if self.validators:
            request.send_header("ETag", tag)
        request.end_headers()
        request.wfile.write(content)

    def asked(self) -> list[tuple[str, int]]:
        """Return what was asked since the last call: (path, status)."""
        answers, self.answers = self.answers, []
        return answers

    def close(self) -> None:
        self.stalled.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    (tmp_path / "www").mkdir()
    running = Server(tmp_path / "www")
    yield running
    running.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """Return an ingest of four radar files."""
    folder = tmp_path_factory.mktemp("trained")
    for minutes in TENS:
        feeds.write_bom(folder / "feed", minutes)
    return ingested(bom(folder / "feed"), folder / "o.zarr")


def publish(server: Server, minutes: int) -> Path:
    name = f"rain_{at(minutes):%Y%m%d%H%M}.nc"
    return feeds.write_bom(server.folder / f"{at(minutes):%Y/%m}", minutes, name=name)


@pytest.fixture
def pattern(server: Server) -> str:
    return f"{server.url}/%Y/%m/rain_%Y%m%d%H%M.nc"


def test_an_address_a_frame(server, pattern, trained, tmp_path):
    clock = SimulatedClock(at(30))
    live = live_of(tmp_path / "live", bom(pattern), contract(trained), clock)
    for minutes in (0, 10, 30):
        publish(server, minutes)
    assert live.peek(START, at(30)) == [at(0), at(10), at(30)]
    assert not (tmp_path / "live").exists()
    assert [path[-7:-3] + f" {status}" for path, status in server.asked()] == [
        "0030 200",
        "0020 404",
        "0010 200",
        "0000 200",
    ]
    scan = live.fetch_frames(START, at(30))
    assert scan.added == [at(0), at(10), at(30)]
    missing = f"{server.url}/2024/06/rain_202406010020.nc"
    assert scan.waiting == [f"{missing}: HTTP 404 Not Found: left for later"]
    assert live.frames([at(30)])[at(30)].origin == f"{server.url}/2024/06/rain_202406010030.nc"
    server.asked()
    publish(server, 20)
    assert live.peek(START, at(30)) == [at(20)]
    assert live.fetch_frames(START, at(30)).added == [at(20)]
    assert [path for path, _ in server.asked()] == 2 * ["/2024/06/rain_202406010020.nc"]  # nothing else again
    require_equal(live, trained)
    assert live.fetch_frames(START, at(30)) == type(scan)()
    assert server.asked() == []


def test_a_download_cut_short_or_broken_is_fetched_again(server, pattern, trained, tmp_path):
    live = live_of(tmp_path / "live", bom(pattern), contract(trained), SimulatedClock(at(0)))
    path = publish(server, 0)
    server.declared = 100
    [waiting] = live.fetch_frames(START, at(0)).waiting
    assert waiting.endswith(
        f"broke off after {path.stat().st_size} of {path.stat().st_size + 100} bytes: left for later"
    )
    assert list((tmp_path / "live" / "incoming").iterdir()) == []
    server.declared = 0
    whole = path.read_bytes()
    path.write_bytes(whole[:-50])
    for _ in range(5):
        [waiting] = live.fetch_frames(START, at(0)).waiting
        assert waiting.startswith(f"{server.url}/2024/06/rain_202406010000.nc: ")
        assert "truncated file" in waiting
    assert [status for _, status in server.asked()] == [200, 200, 304, 304, 304, 304]
    path.write_bytes(whole)
    assert live.fetch_frames(START, at(0)).added == [START]


def test_a_file_of_another_time_than_its_address_counts_for_its_own(server, pattern, trained, tmp_path):
    live = live_of(tmp_path / "live", bom(pattern), contract(trained), SimulatedClock(at(10)))
    feeds.write_bom(server.folder / "2024/06", 0, name="rain_202406010010.nc")
    for _ in range(2):
        scan = live.fetch_frames(START, at(10))
        [line] = [line for line in scan.waiting if "holds" in line]
        assert line.startswith(f"{server.url}/2024/06/rain_202406010010.nc: ")
        assert line.endswith("holds 2024-06-01T00:00:00Z, expected 2024-06-01T00:10:00Z: left for later")
    assert live.times(*WHOLE) == [START]
    publish(server, 10)
    assert live.fetch_frames(START, at(10)).added == [at(10)]
    require_equal(live, trained.isel(time=slice(0, 2)))


def test_what_is_refused_is_not_fetched_again(server, pattern, trained, tmp_path):
    live = live_of(tmp_path / "live", bom(pattern), contract(trained), SimulatedClock(at(20)))
    publish(server, 0)
    path = f"{at(10):%Y/%m/rain_%Y%m%d%H%M.nc}"
    feeds.write_bom(server.folder, 10, np.full((5, 7), -1, np.int16), name=path)
    feeds.write_bom(server.folder, 20, np.ones((4, 4), np.int16), name=f"{at(20):%Y/%m/rain_%Y%m%d%H%M.nc}")
    refused = live.fetch_frames(START, at(20)).refused
    assert [line.partition(".nc: ")[2] for line in refused] == [
        "time 2024-06-01T00:10:00Z: every cell is missing",
        "y has 4 cells, expected 5 as in the training data: remove the file, correct live.source (path, crop, coarsen, "
        "variables) or train on such data",
    ]
    server.asked()
    live.fetch_frames(START, at(20))
    assert server.asked() == []


def test_one_address_of_a_file_that_grows(server, tmp_path):
    path = server.folder / "latest.nc"
    observations = ingested(gridded(feeds.write_gridded(path, TENS)), tmp_path / "o.zarr")
    feeds.write_gridded(path, [0, 10])
    url = f"{server.url}/latest.nc?token=hidden"
    live = live_of(tmp_path / "live", gridded(url), contract(observations))
    assert live.peek(*WHOLE) == [at(0), at(10)]
    assert not (tmp_path / "live").exists()
    assert live.fetch_frames(*WHOLE).added == [at(0), at(10)]
    assert live.fetch_frames(*WHOLE).added == []
    assert [status for _, status in server.asked()] == [200, 200, 304]
    feeds.write_gridded(path, TENS)
    assert live.peek(*WHOLE) == [at(20), at(30)]
    assert live.fetch_frames(START, at(20)).added == [at(20)]
    path.unlink()  # the copy that is here serves on
    scan = live.fetch_frames(*WHOLE)
    assert (scan.added, len(scan.waiting)) == ([at(30)], 1)
    assert "HTTP 404" in scan.waiting[0]
    require_equal(live, observations)
    assert len(list((tmp_path / "live" / "incoming").iterdir())) == 1
    texts = [scan.waiting[0], live.frames([START])[START].origin]
    assert not [text for text in texts if "hidden" in text]
    assert b"hidden" not in (tmp_path / "live" / "index.sqlite").read_bytes()
    feeds.write_gridded(path, [*TENS, 40])
    server.validators = False
    assert [live.fetch_frames(*WHOLE).added for _ in range(2)] == [[at(40)], []]


def test_downloads_are_pruned_with_their_frames(server, pattern, trained, tmp_path):
    live = live_of(tmp_path / "live", bom(pattern), contract(trained), SimulatedClock(at(30)))
    for minutes in TENS:
        publish(server, minutes)
    live.fetch_frames(START, at(30))
    incoming = tmp_path / "live" / "incoming"
    (incoming / ".left.partial").write_bytes(b"by a crash")
    assert len(list(incoming.iterdir())) == 5
    assert live.prune(at(20)) == 2
    assert sorted(path.name[17:] for path in incoming.iterdir()) == ["rain_202406010020.nc", "rain_202406010030.nc"]
    server.asked()
    assert live.fetch_frames(at(20), at(30)).added == []
    assert server.asked() == []


def test_a_server_that_is_down_or_silent(server, pattern, trained, tmp_path, monkeypatch):
    publish(server, 0)
    server.close()
    live = live_of(tmp_path / "live", bom(pattern), contract(trained), SimulatedClock(at(10)))
    scan = live.fetch_frames(START, at(10))
    assert len(scan.waiting) == 2
    assert all("no answer (<urlopen error" in line and "refused" in line for line in scan.waiting)
    silent = Server(server.folder)
    silent.stalled.clear()
    monkeypatch.setattr("fieldcast.pipeline.live.feed.poll.REQUEST_SECONDS", 0.2)
    url = pattern.replace(server.url, silent.url)
    slow = live_of(tmp_path / "slow", bom(url), contract(trained), SystemClock(), FeedRules(max_seconds=1.5))
    before = time.monotonic()
    waiting = slow.fetch_frames(START, at(100)).waiting
    assert time.monotonic() - before < 1.5
    assert len(waiting) == 11
    assert "timed out" in waiting[0]
    assert waiting[-1].endswith("not asked, all requests took 0.5 s: left for later")
    silent.close()


@pytest.mark.parametrize("declared", [True, False])
def test_one_look_downloads_so_many_bytes_and_no_file_that_has_more(server, pattern, trained, tmp_path, declared):
    sizes = [publish(server, minutes).stat().st_size for minutes in (0, 10, 30)]
    large = publish(server, 20)
    large.write_bytes(large.read_bytes() + bytes(4 * sizes[0]))
    if not declared:
        server.length = False
    look = FeedRules(max_bytes=2 * sizes[0] + 100)
    live = live_of(tmp_path / "live", bom(pattern), contract(trained), SimulatedClock(at(30)), look)
    scan = live.fetch_frames(START, at(30))
    (refused,) = scan.refused
    assert f"rain_202406010020.nc: {large.stat().st_size if declared else ''}" in refused
    assert refused.endswith(" MB (live.feed.max_megabytes) at most: correct live.source or raise that")
    assert at(30) in scan.added
    server.asked()
    added = scan.added + live.fetch_frames(START, at(30)).added + live.fetch_frames(START, at(30)).added
    assert sorted(added) == [at(0), at(10), at(30)]
    assert not any("0020" in path for path, _ in server.asked())  # it is not asked for again
    assert live.fetch_frames(START, at(30)).refused == []


def test_addresses_through_fsspec(trained, tmp_path):
    """`memory://` in the place of s3:// and all others: a version instead of an ETag, and the same rules."""
    memory = fsspec.filesystem("memory")
    for minutes in (0, 10):
        path = feeds.write_bom(tmp_path / "feed", minutes)
        memory.pipe(f"/feed/{at(minutes):%H%M}.nc", path.read_bytes())
    live = live_of(tmp_path / "live", bom("memory://feed/%H%M.nc"), contract(trained), SimulatedClock(at(20)))
    scan = live.fetch_frames(START, at(20))
    assert (scan.added, scan.waiting) == ([at(0), at(10)], ["memory://feed/0020.nc: not there: left for later"])
    observations = ingested(gridded(feeds.write_gridded(tmp_path / "a.nc", TENS)), tmp_path / "o.zarr")
    one = live_of(tmp_path / "one", gridded("memory://feed/latest.nc"), contract(observations))
    assert one.fetch_frames(*WHOLE).waiting == ["memory://feed/latest.nc: not there: left for later"]
    memory.pipe("/feed/latest.nc", feeds.write_gridded(tmp_path / "b.nc", TENS[:2]).read_bytes())
    assert one.fetch_frames(*WHOLE).added == [at(0), at(10)]
    assert one.fetch_frames(*WHOLE).added == []
    memory.pipe("/feed/latest.nc", (tmp_path / "a.nc").read_bytes())
    assert one.fetch_frames(*WHOLE).added == [at(20), at(30)]
    require_equal(one, observations)
    memory.rm("/feed", recursive=True)


def test_addresses_that_cannot_be_used(trained, tmp_path):
    live = live_of(tmp_path, bom("https://me:secret@127.0.0.1/a.nc"), contract(trained))
    with pytest.raises(InputError, match="with a user name, expected an address without") as error:
        live.fetch_frames(*WHOLE)
    assert "secret" not in str(error.value)
    with pytest.raises(InputError, match=r"source\.path is 'odd://a/b\.nc': Protocol not known: odd: correct it"):
        live_of(tmp_path, bom("odd://a/b.nc"), contract(trained)).fetch_frames(*WHOLE)


@pytest.mark.parametrize("address_of", [str, lambda path: f"file://{path}"])
def test_a_zarr_store_that_grows(tmp_path, address_of: Callable[[Path], str]):
    whole = xr.open_dataset(feeds.write_gridded(tmp_path / "a.nc", TENS), engine="h5netcdf").load()
    whole.drop_encoding().to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    observations = ingested(gridded(tmp_path / "a.zarr"), tmp_path / "o.zarr")
    live = live_of(tmp_path / "live", gridded(address_of(tmp_path / "feed.zarr")), contract(observations))
    scan = live.fetch_frames(*WHOLE)
    assert (scan.added, len(scan.waiting)) == ([], 1)
    start = whole.isel(time=slice(0, 2)).drop_encoding()
    start.to_zarr(tmp_path / "feed.zarr", zarr_format=3, consolidated=False)
    assert live.fetch_frames(*WHOLE).added == [at(0), at(10)]
    rest = whole.isel(time=slice(2, 4)).drop_encoding()
    rest.to_zarr(tmp_path / "feed.zarr", append_dim="time", consolidated=False)
    chunk = tmp_path / "feed.zarr" / "rain" / "c" / "1" / "0" / "0"
    chunk.rename(tmp_path / "later")  # the times are there, the fields are not yet
    scan = live.fetch_frames(*WHOLE)
    assert scan.added == []
    assert [line.partition(": time ")[2] for line in scan.waiting] == [
        f"2024-06-01T00:{minutes}:00Z: every cell is missing: left for later" for minutes in (20, 30)
    ]
    (tmp_path / "later").rename(chunk)
    assert live.peek(*WHOLE) == [at(20), at(30)]
    assert live.fetch_frames(*WHOLE).added == [at(20), at(30)]
    require_equal(live, observations)
    before = (tmp_path / "live" / "index.sqlite").stat().st_mtime_ns
    assert live.fetch_frames(*WHOLE) == type(scan)()
    assert (tmp_path / "live" / "index.sqlite").stat().st_mtime_ns == before


def test_an_impossible_frame_of_a_zarr_store_is_named_once_and_set_aside_until_its_values_change(tmp_path):
    whole = xr.open_dataset(feeds.write_gridded(tmp_path / "a.nc", TENS), engine="h5netcdf").load()
    path, chunks = tmp_path / "feed.zarr", {"rain": {"chunks": (1, *whole.rain.shape[1:])}}
    whole.drop_encoding().to_zarr(path, zarr_format=3, consolidated=False, encoding=chunks)
    observations = ingested(gridded(path), tmp_path / "o.zarr")
    rules = FeedRules(values={"rain": (None, 1000.0)})
    live = live_of(tmp_path / "live", gridded(path), contract(observations), look=rules)
    wild = whole.drop_encoding().copy(deep=True)
    wild.rain[2, 1, 1] = 5000
    wild.rain[1, 0, 0] = 1e31
    wild.to_zarr(path, mode="w", zarr_format=3, consolidated=False, encoding=chunks)
    scan = live.fetch_frames(*WHOLE)
    assert scan.added == [at(0), at(10), at(30)]
    (line,) = scan.refused
    assert line.startswith(f"{path}: time 2024-06-01T00:20:00Z: rain is 5000 in one of 1 cells beyond what is possible")
    (flag,) = scan.flagged()
    assert flag.startswith(f"{path}: time 2024-06-01T00:10:00Z: 1 of rain infinite, 1e30 or beyond")
    again = live.fetch_frames(*WHOLE)
    assert (again.added, again.refused, again.flagged()) == ([], [], [])
    whole.drop_encoding().to_zarr(path, mode="w", zarr_format=3, consolidated=False, encoding=chunks)
    assert live.fetch_frames(*WHOLE).added == [at(20)]


def test_a_zarr_store_that_cannot_be_read_is_named_and_asked_again(tmp_path):
    whole = xr.open_dataset(feeds.write_gridded(tmp_path / "a.nc", TENS), engine="h5netcdf").load()
    path = tmp_path / "feed.zarr"
    whole.drop_encoding().to_zarr(path, zarr_format=3, consolidated=False)
    live = live_of(tmp_path / "live", gridded(path), contract(ingested(gridded(path), tmp_path / "o.zarr")))
    metadata = (path / "time" / "zarr.json").read_bytes()
    (path / "time" / "zarr.json").write_bytes(b"{")
    scans = [live.fetch_frames(*WHOLE) for _ in range(4)]
    assert [len(scan.refused) for scan in scans] == [0, 0, 1, 0]
    assert scans[2].refused[0].endswith("not read at 3 looks, asked again at every one")
    (path / "time" / "zarr.json").write_bytes(metadata)
    assert live.fetch_frames(*WHOLE).added == [at(0), at(10), at(20), at(30)]


def test_codes_and_addresses():
    moment = datetime.fromisoformat("2024-06-01T05:00:00+00:00")
    assert address("https://h/%Y/%j/a%20b_%y%m%d_%H%M%S.h5", moment) == "https://h/2024/153/a%20b_240601_050000.h5"
    assert [has_codes(f"https://h/{it}") for it in ("%Y.nc", "%H.nc", "a%20b%d0%bf.nc", "a.nc")] == [
        True,
        True,
        False,
        False,
    ]
    assert public("/a/b.nc") == "/a/b.nc"
    assert public("https://h/a.nc") == "https://h/a.nc"
    assert public("https://u:p@h/a.nc?key=1").startswith("https://h/a.nc#")
    assert public("https://h/a?t=1") != public("https://h/a?t=2")


def test_work_within_time():
    assert within(5, lambda: 3) == 3
    with pytest.raises(KeyError):
        within(5, lambda: {}["a"])
    release = Event()
    with pytest.raises(UnavailableError, match="no answer in 0 s"):
        within(0.05, release.wait)
    release.set()


def test_names_are_listed_as_pathlib_finds_them(tmp_path):
    for name in ("b.nc", "a/c.nc", "a/deep/d.nc", "a/.hidden.nc", "a/e.h5", "x[1].nc", "other/f.nc"):
        (tmp_path / "feed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "feed" / name).touch()
    (tmp_path / "feed" / "link").symlink_to(tmp_path / "feed" / "other")
    (tmp_path / "feed" / "broken.nc").symlink_to("nowhere")
    expected = sorted(str(path) for path in (tmp_path / "feed").rglob("*.nc"))
    assert listed(str(tmp_path / "feed"), ["*.nc", "*.nc"]) == expected
    assert len(expected) == 7
    assert listed(str(tmp_path / "feed" / "x[1].nc"), []) == [str(tmp_path / "feed" / "x[1].nc")]
    assert listed(str(tmp_path / "feed" / "broken.nc"), []) == [str(tmp_path / "feed" / "broken.nc")]
    assert listed(str(tmp_path / "nothing" / "*.nc"), []) == []
