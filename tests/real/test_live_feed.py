"""Live frames of real archives are those that an ingest stores, whatever the order and state in which files arrive."""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions
from tests.live.clocks import SimulatedClock
from tests.live.feeds import bom, contract, ingested, live_of, require_equal

DAY = datetime(2020, 10, 31, tzinfo=UTC)
MARCH = datetime(2019, 3, 1, tzinfo=UTC)
SPAN = (DAY, DAY + timedelta(days=1))


@pytest.fixture(scope="module")
def files(archive: Path) -> list[Path]:
    """Return 24 files of 10 minutes each, with a gap."""
    chosen = sorted((archive / "radar" / "bom").rglob("*.nc"))[30:56]
    return [path for number, path in enumerate(chosen) if number not in (9, 10)]


@pytest.mark.parametrize("more", [{}, {"crop": {"y": (100, 405), "x": (7, 500)}, "coarsen": 4}])
def test_radar_files_in_any_order_some_twice_some_cut_short(files, tmp_path, more):
    for path in files:
        (tmp_path / "archive").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "archive")
    observations = ingested(bom(tmp_path / "archive", **more), tmp_path / "o.zarr")
    feed = tmp_path / "feed"
    live = live_of(tmp_path / "live", bom(feed, **more), contract(observations), SimulatedClock(SPAN[1]))
    rng = np.random.default_rng(0)
    cut = set(rng.choice(len(files), 6, replace=False).tolist())
    twice = set(rng.choice(len(files), 6, replace=False).tolist())
    whole: list[int] = []
    duplicates = 0
    for round_of in np.array_split(rng.permutation(len(files)), 6):
        for number in round_of:
            target = feed / str(number % 3) / files[number].name
            target.parent.mkdir(parents=True, exist_ok=True)
            content = files[number].read_bytes()
            target.write_bytes(content[: len(content) // 2] if number in cut else content)
            if number in twice and number not in cut:
                (feed / f"copy_{files[number].name}").write_bytes(content)
        scan = live.fetch_frames(*SPAN)
        duplicates += scan.duplicates
        assert len(scan.added) == len(set(round_of.tolist()) - cut)
        whole += round_of.tolist()
        assert len(scan.waiting) == len(cut & set(whole))
        known = {str(feed / str(number % 3) / files[number].name) for number in cut}  # to be cut, after three looks
        assert {line.split(": ")[0] for line in scan.refused} <= known
    for number in cut:
        shutil.copy(files[number], feed / str(number % 3) / files[number].name)
    assert len(live.fetch_frames(*SPAN).added) == len(cut)
    assert duplicates == len(twice - cut)
    require_equal(live, observations)
    assert live.fetch_frames(*SPAN) == type(scan)()
    template = observations.drop_vars("frame_present").isel(time=slice(0, 0)).drop_vars("time")
    xr.testing.assert_identical(live.grid(), template)


def test_a_grib_file_that_grows(archive, tmp_path):
    whole = next((archive / "era5").glob("*.grib")).read_bytes()
    length = len(whole) // (31 * 24)  # a message an hour
    path = tmp_path / "feed" / "a.grib"
    path.parent.mkdir()
    options = GriddedOptions(path=str(path), variables=["t2m"])
    path.write_bytes(whole[: 30 * length])
    observations = ingested(options, tmp_path / "o.zarr")
    until = MARCH + timedelta(hours=29)
    live = live_of(tmp_path / "live", options, contract(observations), SimulatedClock(until))
    for hours, cut in ((6, 0), (20, 0), (29, 100), (30, 0)):
        path.write_bytes(whole[: hours * length + cut])
        scan = live.fetch_frames(MARCH, until)
        assert len(scan.waiting) == bool(cut)
        if not cut:
            assert len(live.times(MARCH, until)) == hours
    require_equal(live, observations)
