import hashlib
import os
import shutil
import sqlite3
import tempfile
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import MovingMnistOptions, RadarOptions, StormsOptions
from fieldcast.pipeline.datasets.times import from_numpy
from fieldcast.pipeline.errors import BusyError, CannotWriteError, DamagedError, InputError
from fieldcast.pipeline.live.archive.durable import FAILPOINT
from fieldcast.pipeline.live.feed import segments
from fieldcast.pipeline.live.feed.frame_file import encode
from fieldcast.pipeline.live.feed.limits import FeedRules
from fieldcast.pipeline.live.feed.store import LiveObservations
from fieldcast.pipeline.sources import files, open_source
from fieldcast.pipeline.sources.decoder import SlowError
from fieldcast.pipeline.sources.radar import composites
from fieldcast.pipeline.sources.storms import StormsSource
from tests.campaign import size
from tests.live.clocks import SimulatedClock
from tests.live.feeds import (
    LATER,
    START,
    at,
    bom,
    contract,
    frame,
    gridded,
    ingested,
    live_of,
    require_equal,
    write_bom,
    write_gridded,
)
from tests.sources import archives

WHOLE = (START, LATER)
TENS = list(range(0, 80, 10))


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with eight radar files."""
    folder = tmp_path_factory.mktemp("original") / "feed"
    for minutes in TENS:
        write_bom(folder, minutes)
    return folder


@pytest.fixture(scope="module")
def trained(original: Path) -> xr.Dataset:
    """Return an ingest of all those files."""
    return ingested(bom(original), original.parent / "trained.zarr")


@pytest.fixture
def feed(original: Path, tmp_path: Path) -> Path:
    """Return a copy of the folder."""
    return Path(shutil.copytree(original, tmp_path / "feed"))


@pytest.fixture
def live(feed: Path, trained: xr.Dataset, tmp_path: Path) -> LiveObservations:
    return live_of(tmp_path / "live", bom(feed), contract(trained))


@pytest.mark.parametrize(
    ("pattern", "more"),
    [("", {}), ("*.nc", {"crop": {"y": (0, 4), "x": (1, 7)}, "coarsen": 2}), ("rain_0*.nc", {})],
)
def test_folder_and_glob_give_the_bits_of_an_ingest(feed, tmp_path, pattern, more):
    source = bom(feed / pattern, **more)
    observations = ingested(source, tmp_path / "o.zarr")
    live = live_of(tmp_path / "live", source, contract(observations))
    assert len(live.fetch_frames(*WHOLE).added) == len(TENS)
    require_equal(live, observations)
    assert np.isnan(live.read([START], ["rain_rate"])).any()
    template = observations.drop_vars("frame_present").isel(time=slice(0, 0)).drop_vars("time")
    xr.testing.assert_identical(live.grid(), template)
    assert type(live.grid().rain_rate.attrs["valid_min"]) is float


def test_other_formats_give_the_bits_of_an_ingest(tmp_path):
    for minutes in (0, 5, 15):
        end = at(minutes).strftime("%Y-%m-%dT%H:%M")
        (tmp_path / "knmi" / "deep").mkdir(parents=True, exist_ok=True)
        (tmp_path / "fmi").mkdir(exist_ok=True)
        archives.write_knmi(tmp_path / "knmi" / "deep" / f"{minutes:02d}.h5", end, archives.KNMI_COUNTS + minutes)
        archives.write_fmi(tmp_path / "fmi" / f"{minutes:02d}.pgm.gz", at(minutes).strftime("%Y%m%d%H%M"))
    for kind in ("knmi", "fmi"):
        source = RadarOptions.model_validate({"path": str(tmp_path / kind), "format": kind})
        observations = ingested(source, tmp_path / f"{kind}.zarr")
        live = live_of(tmp_path / f"{kind}-live", source, contract(observations))
        live.fetch_frames(*WHOLE)
        require_equal(live, observations)


def test_the_index_entry_of_a_frame(live, feed):
    live.fetch_frames(*WHOLE)
    frames = live.frames([at(10), at(15)])
    assert list(frames) == [at(10)]
    found = frames[at(10)]
    assert (found.origin, found.arrived_at, found.path.name) == (
        str(feed / "rain_0010.nc"),
        LATER,
        "20240601T001000Z.nc",
    )
    rain = live.read([at(10)], ["rain_rate"])
    expected = {"valid_share": 30 / 35, "min": np.nanmin(rain), "max": np.nanmax(rain)}
    assert found.statistics["rain_rate"] == pytest.approx(expected | {"mean": np.nanmean(rain, dtype=np.float64)})


def test_twice_is_once_and_a_peek_writes_nothing(live, tmp_path):
    expected = [at(minutes) for minutes in TENS]
    assert live.peek(*WHOLE) == expected
    assert not (tmp_path / "live").exists()
    assert live.times(*WHOLE) == []
    assert np.isnan(live.read([START], ["rain_rate"])).all()
    scan = live.fetch_frames(*WHOLE)
    assert (scan.added, scan.duplicates, scan.waiting, scan.refused, scan.stale) == (expected, 0, [], [], [])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "live").rglob("*")}
    assert live.peek(*WHOLE) == []
    assert live.fetch_frames(*WHOLE) == type(scan)()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "live").rglob("*")} == before


def test_only_frames_of_the_window_come_in_and_the_others_when_it_covers_them(live, trained):
    assert live.fetch_frames(at(25), at(50)).added == [at(30), at(40), at(50)]
    assert live.fetch_frames(at(60), at(60)).added == [at(60)]
    assert live.fetch_frames(at(10), at(50)).added == [at(10), at(20)]
    live.fetch_frames(*WHOLE)
    require_equal(live, trained)


def test_known_files_are_not_opened_again(live, feed):
    live.fetch_frames(at(0), at(50))
    for path in feed.iterdir():
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    scan = live.fetch_frames(at(0), at(50))
    assert (scan.added, scan.waiting) == ([], [])
    assert len(live.fetch_frames(at(0), at(60)).waiting) == 1


def test_files_out_of_order_late_and_one_by_one(live, feed, tmp_path, trained):
    away = tmp_path / "away"
    feed.rename(away)
    feed.mkdir()
    scan = live.fetch_frames(*WHOLE)
    assert scan.waiting == [f"source.path is '{feed}': nothing there yet"]
    for number in np.random.default_rng(0).permutation(len(TENS)):
        name = f"rain_{TENS[number]:04d}.nc"
        (away / name).rename(feed / name)
        assert live.fetch_frames(*WHOLE).added == [at(TENS[number])]
    require_equal(live, trained)


def test_a_file_cut_short_waits_until_it_is_whole(live, feed, trained):
    whole = (feed / "rain_0050.nc").read_bytes()
    for share in (0, 0.3, 0.9):
        (feed / "rain_0050.nc").write_bytes(whole[: int(len(whole) * share)])
        for _ in range(5):
            scan = live.fetch_frames(*WHOLE)
            assert at(50) not in live.times(*WHOLE)
            assert len(scan.waiting) == 1
            assert scan.waiting[0].startswith(f"{feed / 'rain_0050.nc'}: ")
    (feed / "rain_0050.nc").write_bytes(whole)
    assert live.fetch_frames(*WHOLE).added == [at(50)]
    require_equal(live, trained)


def test_a_file_that_cannot_be_read_at_all_costs_nothing_but_itself(live, feed):
    (feed / "rain_0000.nc").unlink()
    (feed / "rain_0000.nc").symlink_to(feed / "nowhere")
    (feed / "rain_0010.nc").write_bytes(b"")
    (feed / "rain_0020.nc").write_bytes(b"no HDF5 at all")
    (feed / "rain_0030.nc").unlink()
    os.mkfifo(feed / "rain_0030.nc")
    (feed / "rain_0040.nc").unlink()
    (feed / "rain_0040.nc").mkdir()
    (feed / "loop.nc").symlink_to(feed / "loop.nc")
    scan = live.fetch_frames(*WHOLE)
    assert scan.added == [at(minutes) for minutes in TENS[5:]]
    assert [Path(line.split(": ")[0]).name for line in sorted(scan.waiting)] == [
        "loop.nc",
        "rain_0000.nc",
        "rain_0010.nc",
        "rain_0020.nc",
    ]


def test_a_file_that_takes_long_to_decode_holds_up_no_other(feed, trained, tmp_path, monkeypatch):
    live = live_of(tmp_path / "live", bom(feed), contract(trained), look=FeedRules(max_seconds=6.0))
    looks = []

    def slow(path, bounds, work, *arguments):
        if path.endswith(("rain_0020.nc", "again.nc")):
            looks.append(path)
            raise SlowError("killed")
        return work(*arguments)

    monkeypatch.setattr(files, "decode", slow)
    scans = [live.fetch_frames(*WHOLE) for _ in range(5)]
    assert scans[0].added == [at(minutes) for minutes in TENS if minutes != 20]
    assert all("not decoded in" in scan.waiting[0] for scan in scans)
    assert len(looks) == 3  # then it is left alone until it changes
    (aside,) = scans[2].refused
    assert aside == (
        f"{feed / 'rain_0020.nc'}: not decoded in 2 s, a third of live.feed.max_seconds: take the file out of the "
        "feed: set aside after 3 looks, until it changes"
    )
    assert [scan.refused for scan in (*scans[:2], *scans[3:])] == [[]] * 4
    (feed / "rain_0020.nc").rename(feed / "again.nc")  # the same bytes
    scan = live.fetch_frames(*WHOLE)
    assert scan.refused[0].startswith(f"{feed / 'again.nc'}: has the bytes of a file that was set aside: {feed}")
    assert live.fetch_frames(*WHOLE).refused == []
    assert len(looks) == 3
    write_bom(feed, 20, name="again.nc", counts=frame(77))
    monkeypatch.undo()
    assert live.fetch_frames(*WHOLE).added == [at(20)]


def test_files_that_take_long_together_come_in_at_several_looks_the_newest_first(feed, trained, tmp_path, monkeypatch):
    clock = SimulatedClock(LATER)
    live = live_of(tmp_path / "live", bom(feed), contract(trained), clock)

    def slow(path, bounds, work, *arguments):
        clock.sleep(8)  # of 30 seconds
        return work(*arguments)

    for module in (files, composites):
        monkeypatch.setattr(module, "decode", slow)
    scans = [live.fetch_frames(*WHOLE) for _ in range(4)]
    assert [scan.added for scan in scans] == [[at(60), at(70)], [at(40), at(50)], [at(20), at(30)], [at(0), at(10)]]
    assert [len(scan.waiting) for scan in scans] == [6, 4, 2, 0]
    assert (
        scans[0]
        .waiting[0]
        .endswith("rain_0050.nc: not read, other files took 30 s (live.feed.max_seconds): left for later")
    )
    assert [scan.refused for scan in scans] == [[]] * 4


def test_a_file_of_endless_times_is_set_aside(live, feed, monkeypatch):
    monkeypatch.setattr(segments, "MOST_TIMES", 0)
    scans = [live.fetch_frames(*WHOLE) for _ in range(3)]
    assert scans[0].waiting[0].endswith(".nc: declares 1 times, expected 0 at most: take it out of the feed")
    assert len(scans[2].refused) == len(TENS)


def test_a_file_without_permission_comes_in_as_soon_as_it_has_one(trained):
    """A superuser may read everything, and takes another user's part here."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bom(folder / "feed", 0)
        write_bom(folder / "feed", 10).chmod(0)
        folder.chmod(0o777)
        live = live_of(folder / "live", bom(folder / "feed"), contract(trained))
        own = os.geteuid()
        try:
            os.seteuid(own or 65534)
            scan = live.fetch_frames(*WHOLE)
        finally:
            os.seteuid(own)
        assert scan.added == [at(0)]
        assert scan.waiting == [f"{folder / 'feed' / 'rain_0010.nc'}: permission denied"]
        (folder / "feed" / "rain_0010.nc").chmod(0o644)
        assert live.fetch_frames(*WHOLE).added == [at(10)]


def test_a_growing_file_gives_its_new_times_alone(tmp_path):
    path = write_gridded(tmp_path / "feed" / "day.nc", range(0, 60, 10))
    observations = ingested(gridded(path), tmp_path / "o.zarr")
    whole = contract(observations)
    write_gridded(path, [0, 10])
    live = live_of(tmp_path / "live", gridded(tmp_path / "feed"), whole)
    assert live.fetch_frames(*WHOLE).added == [at(0), at(10)]
    write_gridded(path, range(0, 60, 10))
    scan = live.fetch_frames(*WHOLE)
    assert (scan.added, scan.duplicates, scan.refused) == ([at(20), at(30), at(40), at(50)], 0, [])
    require_equal(live, observations)


def test_equal_duplicates_are_counted_and_other_values_refused(live, feed, trained):
    live.fetch_frames(*WHOLE)
    write_bom(feed, 20, name="again.nc")
    write_bom(feed, 30, frame(99), name="other.nc")
    scan = live.fetch_frames(*WHOLE)
    assert (scan.added, scan.duplicates) == ([], 1)
    assert scan.refused == [
        f"{feed / 'other.nc'}: time 2024-06-01T00:30:00Z: conflict, other values than those of "
        f"{feed / 'rain_0030.nc'}, which came first and stay"
    ]
    write_bom(feed, 40, frame(98))  # issued again under the same name
    scan = live.fetch_frames(*WHOLE)
    assert (scan.added, scan.duplicates, len(scan.refused)) == ([], 0, 1)
    assert live.fetch_frames(*WHOLE) == type(scan)()
    require_equal(live, trained)


@pytest.mark.parametrize("rule", ["first", "last", "merge"])
def test_duplicates_of_one_fetch_follow_the_rule_of_the_ingest(feed, tmp_path, rule):
    other = frame(99)
    other[:2] = -1
    write_bom(feed, 30, other, name="another.nc")
    observations = ingested(bom(feed), tmp_path / "o.zarr", duplicates=rule, out_of_order="sort")
    live = live_of(tmp_path / "live", bom(feed), contract(observations), duplicates=rule)
    scan = live.fetch_frames(*WHOLE)
    assert (scan.duplicates, scan.refused) == (1, [])
    require_equal(live, observations)
    assert live.fetch_frames(*WHOLE) == type(scan)()


def test_without_a_rule_the_first_by_name_stays(feed, tmp_path, trained):
    write_bom(feed, 30, frame(99), name="z.nc")
    write_bom(feed, 40, name="z2.nc")
    live = live_of(tmp_path / "live", bom(feed), contract(trained))
    scan = live.fetch_frames(*WHOLE)
    assert (len(scan.added), scan.duplicates, len(scan.refused)) == (len(TENS), 1, 1)
    require_equal(live, trained)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"units": "m s-1"}, "units of rain are 'm s-1', expected 'mm h-1' as in the training data"),
        ({"shift": 0.5}, "y starts at 0.5, expected 0 km as in the training data"),
        ({"fields": np.ones((1, 4, 7), np.float32)}, "y has 4 cells, expected 5 as in the training data"),
    ],
)
def test_a_file_of_another_grid_or_units_is_refused_and_a_feed_of_them_an_error(tmp_path, change, message):
    expected = contract(ingested(gridded(write_gridded(tmp_path / "o.nc", [0, 10])), tmp_path / "o.zarr"))
    feed = tmp_path / "feed"
    wrong = write_gridded(feed / "wrong.nc", [0], **change)
    live = live_of(tmp_path / "live", gridded(feed), expected)
    for _ in range(2):  # for as long as nothing else is there
        with pytest.raises(InputError, match=r"wrong\.nc: ") as error:
            live.fetch_frames(*WHOLE)
        assert message in str(error.value)
        assert "correct live.source" in str(error.value)
    with pytest.raises(InputError, match=r"wrong\.nc: "):
        live.peek(*WHOLE)
    write_gridded(feed / "right.nc", [10])
    assert live.fetch_frames(*WHOLE).added == [at(10)]
    write_gridded(feed / "wrong.nc", [0, 20], **(change if "fields" not in change else {"shift": 3.0}))
    scan = live.fetch_frames(*WHOLE)
    assert (scan.added, len(scan.refused)) == ([], 1)
    assert scan.refused[0].startswith(str(wrong))
    assert live.fetch_frames(*WHOLE) == type(scan)()
    write_gridded(feed / "wrong.nc", [0])  # corrected
    assert live.fetch_frames(*WHOLE).added == [at(0)]


def test_a_missing_variable_and_a_crop_too_large_are_named(tmp_path, trained, feed):
    write_gridded(tmp_path / "g" / "a.nc", [0, 10])
    live = live_of(tmp_path / "live", gridded(tmp_path / "g"), contract(trained))
    with pytest.raises(InputError, match=r"a\.nc: there is no rain_rate among .*, expected it in 'mm h-1'"):
        live.fetch_frames(*WHOLE)
    live = live_of(tmp_path / "live", bom(feed, crop={"y": (0, 50), "x": (0, 7)}), contract(trained))
    with pytest.raises(InputError, match=r"source\.crop\.y is \[0, 50\], but the grid of .*rain_0000\.nc has 5 cells"):
        live.fetch_frames(*WHOLE)


def test_wrong_units_inside_a_radar_file_wait(live, feed):
    write_bom(feed, 20, units="K")
    assert live.fetch_frames(*WHOLE).waiting == [
        f"{feed / 'rain_0020.nc'}: 'precipitation' has units 'K', expected kg m-2 or mm: "
        "keep archives of different units apart"
    ]


def test_frames_of_another_model_are_not_mixed(live, trained, feed, tmp_path):
    live.fetch_frames(*WHOLE)
    smaller = bom(feed, crop={"y": (0, 4), "x": (0, 7)})
    other = live_of(tmp_path / "live", smaller, contract(ingested(smaller, tmp_path / "s.zarr")))
    for call in (lambda: other.fetch_frames(*WHOLE), lambda: other.read([START], ["rain_rate"]), other.grid):
        with pytest.raises(InputError, match=r"y has 5 cells, expected 4: use another folder for this model"):
            call()
    slower = live_of(tmp_path / "live", bom(feed), replace(live.contract, step_minutes=20))
    assert not np.isnan(slower.read([START], ["rain_rate"])).all()  # another step is no other grid
    live.prune(LATER)
    assert len(other.fetch_frames(*WHOLE).added) == len(TENS)
    assert other.grid().sizes["y"] == 4


def test_times_off_the_axis(tmp_path):
    fields = np.stack([frame(number) for number in range(5)]).astype(np.float32)
    write_gridded(tmp_path / "o.nc", [0, 10])
    expected = contract(ingested(gridded(tmp_path / "o.nc"), tmp_path / "o.zarr"))
    feed = tmp_path / "feed"
    write_gridded(feed / "a.nc", [0, 5, 10, 15, 20], fields)
    strict = live_of(tmp_path / "strict", gridded(feed), expected)
    scan = strict.fetch_frames(*WHOLE)
    assert scan.added == [at(0), at(10), at(20)]
    assert scan.refused == [
        f"{feed / 'a.nc'}: time 2024-06-01T00:05:00Z and 1 more: not on the model's axis of 10 minutes: correct the "
        "file, or set source.step_minutes to 10 if the feed has a finer step"
    ]
    assert strict.fetch_frames(*WHOLE) == type(scan)()
    finer = live_of(tmp_path / "finer", gridded(feed, step_minutes=10), expected)
    scan = finer.fetch_frames(*WHOLE)
    assert (scan.added, scan.refused) == ([at(0), at(10), at(20)], [])
    write_gridded(feed / "b.nc", [27], fields[:1])
    assert finer.fetch_frames(*WHOLE).refused[0].startswith(f"{feed / 'b.nc'}: time 2024-06-01T00:27:00Z: not on")
    write_gridded(feed / "c.nc", [30.001], fields[:1])  # 0.06 s: times are rounded to seconds, as by an ingest
    assert finer.fetch_frames(*WHOLE).added == [at(30)]


def test_a_source_of_another_step_or_without_a_feed(tmp_path, trained):
    with pytest.raises(InputError, match=r"source\.step_minutes is 5, expected 10 as in the training data: set it"):
        live_of(tmp_path, StormsOptions(), contract(trained))
    with pytest.raises(InputError, match=r"source\.kind is 'moving_mnist', which has no live feed"):
        live_of(tmp_path, MovingMnistOptions(train_images="a", test_images="b"), contract(trained))


def test_a_frame_of_the_future_is_refused_and_comes_in_when_it_is_due(feed, tmp_path, trained):
    clock = SimulatedClock(at(30))
    live = live_of(tmp_path / "live", bom(feed), contract(trained), clock)
    scan = live.fetch_frames(START, clock.now())
    assert scan.added[-1] == at(30)
    late = [f"time 2024-06-01T{time}:00Z" for time in ("00:50", "01:00", "01:10")]
    assert [line.split(": ")[1] for line in scan.refused] == late
    assert "in the future, it is 2024-06-01T00:30:00Z" in scan.refused[0]
    assert live.fetch_frames(START, clock.now()) == type(scan)()
    clock.set(LATER)
    live.fetch_frames(START, clock.now())
    require_equal(live, trained)


def test_an_empty_frame_counts_as_not_there(live, feed):
    write_bom(feed, 20, np.full((5, 7), -1, np.int16))
    scan = live.fetch_frames(*WHOLE)
    assert scan.refused == [f"{feed / 'rain_0020.nc'}: time 2024-06-01T00:20:00Z: every cell is missing"]
    assert at(20) not in scan.added
    assert live.fetch_frames(*WHOLE) == type(scan)()
    write_bom(feed, 20)
    assert live.fetch_frames(*WHOLE).added == [at(20)]


def test_a_frozen_feed_is_reported(feed, tmp_path, trained):
    live = live_of(tmp_path / "live", bom(feed), contract(trained))
    write_bom(feed, 50, frame(4))
    dry = np.zeros((5, 7), np.int16)
    for minutes in (80, 90, 100):
        write_bom(feed, minutes, dry)
    assert live.fetch_frames(*WHOLE).stale == [at(50)]
    write_bom(feed, 130, frame(14))
    assert live.fetch_frames(*WHOLE).stale == []
    write_bom(feed, 120, frame(14))  # late: the frame after it turns out to repeat it
    assert live.fetch_frames(*WHOLE).stale == [at(130)]


def test_prune_removes_what_is_older(live, tmp_path):
    live.fetch_frames(*WHOLE)
    frames = tmp_path / "live" / "frames"
    (frames / ".20240601T010000Z.nc.partial").write_bytes(b"left by a crash")
    (frames / "20240531T230000Z.nc").write_bytes(b"without a row")
    assert live.prune(at(60)) == 6
    assert live.times(*WHOLE) == [at(minutes) for minutes in TENS[6:]]
    assert sorted(path.name for path in frames.iterdir()) == [f"{at(m):%Y%m%dT%H%M%SZ}.nc" for m in TENS[6:]]
    assert live.prune(at(60)) == 0
    assert live.fetch_frames(at(60), LATER).added == []
    assert len(live.fetch_frames(*WHOLE).added) == 6  # the window covers them again
    assert live_of(tmp_path / "none", bom("nowhere"), live.contract).prune(LATER) == 0


def test_a_crash_in_prune_leaves_nothing_that_cannot_be_read(live, trained, tmp_path, monkeypatch):
    live.fetch_frames(*WHOLE)
    monkeypatch.setenv(FAILPOINT, "rows-pruned:raise")
    with pytest.raises(RuntimeError):
        live.prune(at(60))
    monkeypatch.delenv(FAILPOINT)
    assert np.isnan(live.read([at(0)], ["rain_rate"])).all()
    assert live.prune(at(60)) == 0
    assert len(list((tmp_path / "live" / "frames").iterdir())) == len(TENS) - 6


def test_a_crash_between_file_and_row_is_repaired(live, trained, tmp_path, monkeypatch):
    monkeypatch.setenv(FAILPOINT, "frame-written:raise")
    with pytest.raises(RuntimeError):
        live.fetch_frames(*WHOLE)
    monkeypatch.delenv(FAILPOINT)
    assert [path.name for path in (tmp_path / "live" / "frames").iterdir()] == ["20240601T011000Z.nc"]
    assert live.times(*WHOLE) == []
    assert len(live.fetch_frames(*WHOLE).added) == len(TENS)
    require_equal(live, trained)


def test_a_full_disk_is_an_error_of_its_own_and_costs_no_frame(live, trained, monkeypatch):
    monkeypatch.setenv(FAILPOINT, "frame-written:enospc")
    with pytest.raises(OSError, match="No space left"):
        live.fetch_frames(*WHOLE)
    monkeypatch.delenv(FAILPOINT)
    live.fetch_frames(*WHOLE)
    require_equal(live, trained)


def test_a_row_or_a_file_that_is_gone_comes_in_again(live, trained, tmp_path):
    live.fetch_frames(*WHOLE)
    index = sqlite3.connect(tmp_path / "live" / "index.sqlite")
    with index:
        index.execute("DELETE FROM frames WHERE time = '2024-06-01T00:20:00Z'")
    index.close()
    gone = tmp_path / "live" / "frames" / "20240601T003000Z.nc"
    gone.unlink()
    with pytest.raises(DamagedError, match=r"20240601T003000Z\.nc: sha256 is that of no file, expected [0-9a-f]{64}"):
        live.read([at(30)], ["rain_rate"])
    assert live.peek(*WHOLE) == [at(20), at(30)]
    assert live.fetch_frames(*WHOLE).added == [at(20), at(30)]
    require_equal(live, trained)


def test_every_flipped_bit_of_a_frame_is_noticed(live, trained, tmp_path):
    live.fetch_frames(*WHOLE)
    path = tmp_path / "live" / "frames" / "20240601T002000Z.nc"
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(0, 8 * len(whole), size(15, 500)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises(DamagedError, match=r"20240601T002000Z\.nc: sha256 is .*, expected .*: delete the file"):
            live.read([at(10), at(20)], ["rain_rate"])
        assert not np.isnan(live.read([at(10)], ["rain_rate"])).all()
    assert live.discard_damaged() == 1
    assert live.discard_damaged() == 0
    assert live.fetch_frames(*WHOLE).added == [at(20)]
    require_equal(live, trained)


def test_a_flipped_bit_of_the_index_never_changes_a_value(live, trained, tmp_path):
    live.fetch_frames(*WHOLE)
    path = tmp_path / "live" / "index.sqlite"
    whole = path.read_bytes()
    noticed = 0
    for place in np.random.default_rng(1).integers(0, 8 * len(whole), size(15, 200)):
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << (place % 8)
        path.write_bytes(bytes(damaged))
        try:
            noticed += bool(live.fetch_frames(*WHOLE).added)  # damaged rows went, and their frames came in again
            require_equal(live, trained)
        except (DamagedError, InputError, CannotWriteError, BusyError):
            noticed += 1
            path.unlink()
            live.fetch_frames(*WHOLE)
            require_equal(live, trained)
    assert noticed


def test_an_index_of_a_later_version_or_no_index_at_all(live, tmp_path):
    live.fetch_frames(*WHOLE)
    path = tmp_path / "live" / "index.sqlite"
    index = sqlite3.connect(path)
    index.execute("PRAGMA user_version = 3")
    index.close()
    with pytest.raises(InputError, match=r"index\.sqlite: version is 3, expected 2: use"):
        live.fetch_frames(*WHOLE)
    path.write_bytes(b"no database, but long enough to be looked at as one" * 100)
    with pytest.raises(DamagedError, match=r"index\.sqlite: file is not a database: delete the file"):
        live.times(*WHOLE)


def test_an_index_of_the_first_version_is_read_on(live, trained, feed, tmp_path):
    """It had another SHA-256 in its rows, and facts by another name."""
    live.fetch_frames(*WHOLE)
    index = sqlite3.connect(tmp_path / "live" / "index.sqlite")
    with index:
        for table, key in {"frames": "time", "files": "path", "facts": "name"}.items():
            column = index.execute(f"SELECT * FROM {table}").description[-1][0]
            for *values, _ in index.execute(f"SELECT * FROM {table}").fetchall():
                old = hashlib.sha256("\x1f".join(map(str, values)).encode()).hexdigest()
                index.execute(f"UPDATE {table} SET {column} = ? WHERE {key} = ?", [old, values[0]])
        index.execute("UPDATE frames SET bytes = bytes + 1 WHERE time = '2024-06-01T00:20:00Z'")  # damaged before
        index.execute("ALTER TABLE facts RENAME COLUMN name TO key")
        index.execute("ALTER TABLE facts RENAME TO about")
        index.execute("PRAGMA user_version = 1")
    index.close()
    assert live.peek(*WHOLE) == [at(20)]
    assert len(live.frames([at(10), at(30)])) == 2
    shutil.rmtree(feed)
    feed.mkdir()
    assert live.fetch_frames(*WHOLE).added == []
    assert live.times(*WHOLE) == [at(minutes) for minutes in TENS if minutes != 20]


def test_an_index_that_others_hold_is_busy(live, tmp_path, monkeypatch):
    live.fetch_frames(*WHOLE)
    monkeypatch.setattr("fieldcast.pipeline.live.archive.database.BUSY_SECONDS", 0.1)
    index = sqlite3.connect(tmp_path / "live" / "index.sqlite", isolation_level=None)
    index.execute("BEGIN EXCLUSIVE")
    with pytest.raises(BusyError, match=r"index\.sqlite: database is locked: another process is writing"):
        live.times(*WHOLE)
    index.close()


def test_with_other_options_known_files_are_read_again(live, feed, trained, tmp_path):
    live.fetch_frames(*WHOLE)
    write_bom(feed, 20, frame(99), name="z.nc")
    live.fetch_frames(*WHOLE)
    merging = live_of(tmp_path / "live", bom(feed), live.contract, duplicates="first")
    assert merging.fetch_frames(*WHOLE).duplicates == 1
    require_equal(live, trained)


def test_frames_are_the_same_bytes_wherever_and_whenever_they_arrive(live, feed, tmp_path):
    live.fetch_frames(at(20), at(20))
    other = live_of(tmp_path / "other", bom(feed), live.contract, SimulatedClock(LATER + timedelta(days=3)))
    other.fetch_frames(*WHOLE)
    for folder in ("live", "other"):
        assert live.frames([at(20)])[at(20)].sha256 == other.frames([at(20)])[at(20)].sha256, folder
    values = {"rain_rate": live.read([at(20)], ["rain_rate"])[0, 0]}
    assert encode(at(20), values, other.grid()) == (tmp_path / "live/frames/20240601T002000Z.nc").read_bytes()


def test_unknown_variables_are_named(live):
    live.fetch_frames(*WHOLE)
    with pytest.raises(InputError, match=r"20240601T000000Z\.nc: no variable 'snow', found .*rain_rate"):
        live.read([START], ["snow"])


def test_grid_without_a_frame(live):
    with pytest.raises(InputError, match=r"live: no frame is there yet"):
        live.grid()


def test_storms_appear_as_time_goes_by(tmp_path):
    source = StormsOptions(start=START, events=3, event_minutes=30, event_every_minutes=60, cells=16, coarsen=2)
    observations = ingested(source, tmp_path / "o.zarr")
    clock = SimulatedClock(at(62))
    live = live_of(tmp_path / "live", source.model_copy(update={"events": 1_000_000}), contract(observations), clock)
    assert live.peek(at(20), clock.now()) == [at(20), at(25), at(60)]
    assert live.fetch_frames(at(20), clock.now()).added == [at(20), at(25), at(60)]
    clock.set(at(145))
    live.fetch_frames(START, clock.now())
    require_equal(live, observations)
    assert live.frames([at(60)])[at(60)].origin == "storm 1"
    wrong = live_of(tmp_path / "wrong", source.model_copy(update={"cells": 32}), contract(observations), clock)
    with pytest.raises(InputError, match=r"the source \(storms\): y has 16 cells, expected 8"):
        wrong.fetch_frames(START, clock.now())


@pytest.mark.parametrize("options", [{}, {"event_minutes": 60, "event_every_minutes": 60}, {"step_minutes": 10}])
def test_events_of_a_window_are_those_of_all(options):
    source = open_source(StormsOptions(start=START, events=7, **options))
    assert isinstance(source, StormsSource)
    parts = source.segments()
    for first in range(-500, 3000, 35):
        for length in (0, 5, 130, 700):
            window = [np.datetime64(at(minutes).replace(tzinfo=None), "ns") for minutes in (first, first + length)]
            expected = [it for it in parts if ((it.times >= window[0]) & (it.times <= window[1])).any()]
            during = source.during(*window)
            assert set(expected) <= set(during), (first, length)
            assert all(it.times[0] <= window[1] and it.times[-1] >= window[0] for it in during)
    many = StormsSource(StormsOptions(start=START, events=1_000_000))
    [event] = many.during(*2 * [np.datetime64(at(360 * 200_000).replace(tzinfo=None), "ns")])
    assert event.event == 200_000
    assert from_numpy(event.times[0]) == at(360 * 200_000)
