"""Published forecasts as readers find them: whole, checked byte by byte, in one dataset."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import dask.array
import numpy as np
import pyproj
import pytest
import xarray as xr

from fieldcast.pipeline.datasets.manifest import MANIFEST
from fieldcast.pipeline.datasets.schema import check_forecasts
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.errors import BusyError, CannotWriteError, DamagedError, InputError
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive.ledger import Ledger, State
from fieldcast.pipeline.live.archive.publish import CATALOGUE, open_forecasts, path_of, read_catalogue, staging_of
from fieldcast.pipeline.sources.template import grid_template
from tests.campaign import size
from tests.live.publishing import (
    HEIGHT,
    LEADS,
    RAIN,
    SEED,
    START,
    WIDTH,
    at,
    claim,
    ended,
    failing,
    fields,
    grid,
    issue,
    publish,
    start,
    writing,
)

CYCLES = 3


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "live"
    for number in range(CYCLES):
        publish(folder, at(number))
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a live folder with three published cycles; nothing in it has been checked before."""
    archive._checked.cache_clear()
    yield Path(shutil.copytree(published, tmp_path / "live"))
    archive._checked.cache_clear()


def read(folder: Path, first: str | None = None, last: str | None = None) -> None:
    open_forecasts(folder, first, last).load()


def files_of(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def test_readers_get_what_was_published(published: Path) -> None:
    forecasts = check_forecasts(open_forecasts(published))
    assert dict(forecasts.sizes) == {"init_time": CYCLES, "lead_time": LEADS, "y": HEIGHT, "x": WIDTH}
    for number in range(CYCLES):
        one = forecasts.isel(init_time=number)
        np.testing.assert_array_equal(one["rain_rate"].values, fields(at(number))[:, 0])
        assert one["init_time"].values == np.datetime64(at(number).replace(tzinfo=None), "ns")
    assert np.isnan(forecasts["rain_rate"].values).any()
    assert forecasts["lead_time"].values.tolist() == [lead * 300 * 10**9 for lead in (1, 2, 3)]
    assert {key: forecasts["rain_rate"].attrs[key] for key in RAIN} == RAIN
    along = ("model", "model_version", "quality_flag", "n_input_missing")
    assert [forecasts[name].values.tolist() for name in along] == [
        [it] * CYCLES for it in ("convlstm", "test/1", "good", 0)
    ]
    assert forecasts["valid_time"].attrs["standard_name"] == "time"
    assert forecasts.attrs["Conventions"] == "CF-1.11"


def test_fields_are_read_when_they_are_needed(folder: Path) -> None:
    forecasts = open_forecasts(folder)
    assert isinstance(forecasts["rain_rate"].data, dask.array.Array)
    last = forecasts["rain_rate"].isel(init_time=-1)
    for chunk in folder.glob("forecasts/*/rain_rate/c"):
        if chunk.parts[-3] != path_of(folder, at(CYCLES - 1)).name:
            shutil.rmtree(chunk)
    np.testing.assert_array_equal(last.values, fields(at(CYCLES - 1))[:, 0])


def test_bytes_do_not_depend_on_attempt_token_or_folder(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for number in reversed(range(CYCLES)):
        for _ in range(2):
            with writing(other) as ledger:
                cycle = claim(ledger, at(number))
        with writing(other) as ledger:
            issue(other, ledger, replace(cycle, token=ledger.token))
    for number in range(CYCLES):
        assert directory_digest(path_of(other, at(number))) == directory_digest(path_of(folder, at(number)))
    xr.testing.assert_identical(open_forecasts(other).load(), open_forecasts(folder).load())


def test_a_manifest_lists_every_file(published: Path) -> None:
    store = path_of(published, START)
    manifest = json.loads((store / MANIFEST).read_text())
    assert sorted(manifest["files"]) == [
        path.relative_to(store).as_posix() for path in files_of(store) if path.name != MANIFEST
    ]
    assert {key: manifest[key] for key in ("init_time", "revision", "quality_flag", "run_key", "format")} == {
        "init_time": "2020-10-31T06:00:00Z",
        "revision": 0,
        "quality_flag": "good",
        "run_key": "06000",
        "format": 1,
    }


@pytest.mark.parametrize("seed", [SEED])
def test_no_flipped_bit_in_a_forecast_goes_unnoticed(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    files = files_of(path_of(folder, START))
    for number in range(size(150, 1000)):
        path = files[number % len(files)]
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        with pytest.raises(DamagedError, match=rf"{path}: .*fieldcast cycle --at 20201031T060000Z --supersede"):
            read(folder, last="2020-10-31T06:00")
        path.write_bytes(whole)
    read(folder)


def swap(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": Path.unlink,
    "emptied": lambda path: os.truncate(path, 0),
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "extended": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a folder instead": swap,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_every_damaged_file_is_named(folder: Path, tmp_path: Path, damage: str) -> None:
    store = path_of(folder, at(1))
    for path in files_of(store):
        kept = shutil.copytree(store, tmp_path / "kept")
        DAMAGE[damage](path)
        with pytest.raises(DamagedError, match=rf"{path}: (is|sha256 is|cannot)"):
            read(folder)
        shutil.rmtree(store)
        kept.rename(store)
    read(folder)


def test_added_or_swapped_files_are_named(folder: Path) -> None:
    store = path_of(folder, at(1))
    added = store / "rain_rate/c/0/0/0/1"
    added.write_bytes(b"")
    with pytest.raises(DamagedError, match=rf"{added}: is not in the manifest"):
        read(folder)
    added.unlink()
    shutil.rmtree(store)
    shutil.copytree(path_of(folder, at(2)), store)  # whole, but another cycle
    with pytest.raises(DamagedError, match=rf"{store / MANIFEST}: sha256 is"):
        read(folder)
    shutil.rmtree(store)
    with pytest.raises(DamagedError, match=rf"{store / MANIFEST}: cannot be read \(No such file"):
        read(folder)
    read(folder, "2020-10-31T06:10")


def test_another_process_notices_damage_too(folder: Path) -> None:
    assert ended(start(read, folder)) == 0
    chunk = path_of(folder, START) / "rain_rate/c/0/0/0/0"
    chunk.write_bytes(chunk.read_bytes()[::-1])
    assert ended(start(read, folder)) == 1
    assert ended(start(read, folder, "2020-10-31T06:05")) == 0


@pytest.mark.parametrize("seed", [SEED])
def test_no_flipped_bit_in_the_catalogue_goes_unnoticed(folder: Path, seed: int) -> None:
    rng = random.Random(seed)
    path = folder / CATALOGUE
    whole, entries = path.read_bytes(), read_catalogue(folder)
    for _ in range(size(100, 500)):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert read_catalogue(folder) == entries
        except DamagedError as error:
            message = str(error)
        assert f"{path}: " in message
        assert "the next cycle writes it anew" in message
    for content in (b"", whole[:-2], b"[]", b"null", b"{}", whole + b"x"):
        path.write_bytes(content)
        with pytest.raises(DamagedError, match=r"latest.json: cannot be read"):
            read_catalogue(folder)


def test_a_newer_format_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "FORMAT", 2)
    publish(folder, at(5))
    monkeypatch.undo()
    for part in (CATALOGUE, f"forecasts/20201031T062500Z.zarr/{MANIFEST}"):
        with pytest.raises(InputError, match=rf"{part}: format is 2, expected 1: use the fieldcast that wrote it"):
            _ = read_catalogue(folder) if part == CATALOGUE else archive.check((folder / part).parent)


@pytest.fixture
def _far_away() -> Iterator[None]:
    """Let the machine live in a time zone that is not UTC."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "America/New_York")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_far_away")
def test_spans(folder: Path) -> None:
    def minutes(first: datetime | str | None, last: datetime | str | None) -> list[int]:
        opened = open_forecasts(folder, first, last)
        return [int(it) for it in opened["init_time"].dt.minute.values]

    assert minutes(None, None) == [0, 5, 10]
    assert minutes("2020-10-31T06:05", None) == [5, 10]
    assert minutes("20201031T060500Z", "2020-10-31T07:05+01:00") == [5]
    assert minutes(at(1), at(1) + timedelta(minutes=4)) == [5]
    assert minutes(None, at(1).replace(tzinfo=None)) == [0, 5]
    with pytest.raises(InputError, match=r"no forecast is published from 2020-10-31T06:11 to None: fieldcast status"):
        minutes("2020-10-31T06:11", None)
    with pytest.raises(InputError, match=r"end is 'noon', expected a time such as 2020-10-31T06:00"):
        minutes(None, "noon")


def test_nothing_published_yet(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"latest.json: no such file: no forecast has been published"):
        open_forecasts(tmp_path)


def test_spans_beyond_the_catalogue_are_found_in_the_ledger(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "CATALOGUE_CYCLES", 2)
    publish(folder, at(3))
    assert [it["init_time"][14:16] for it in read_catalogue(folder)] == ["10", "15"]
    assert open_forecasts(folder).sizes["init_time"] == 4
    assert open_forecasts(folder, at(1), at(2)).sizes["init_time"] == 2
    whole = (folder / archive.LEDGER).read_bytes()
    (folder / archive.LEDGER).write_bytes(whole.replace(b'"total": ', b'"totel": ').replace(b"06000", b"06001"))
    with pytest.raises(DamagedError, match=r"ledger.sqlite: cycle 2020-10-31T06:00:00Z is not what was written"):
        open_forecasts(folder)
    (folder / archive.LEDGER).unlink()
    assert open_forecasts(folder, at(2)).sizes["init_time"] == 2
    with pytest.raises(InputError, match=r"ledger.sqlite: no such file: fieldcast cycle writes it"):
        open_forecasts(folder)


def test_models_with_other_leads_and_fields_share_one_dataset(folder: Path) -> None:
    publish(folder, at(3), fields(at(3), leads=5))
    publish(folder, at(4), fields(at(4), channels=2), on=grid(["rain_rate", "wind"]), quality="filled")
    forecasts = open_forecasts(folder)
    assert forecasts.sizes == {"init_time": 5, "lead_time": 5, "y": HEIGHT, "x": WIDTH}
    assert isinstance(forecasts["wind"].data, dask.array.Array)
    assert {name: forecasts[name].dtype for name in forecasts.data_vars} == dict.fromkeys(
        ("rain_rate", "wind"), np.dtype("float32")
    )
    np.testing.assert_array_equal(forecasts["rain_rate"][3].values, fields(at(3), leads=5)[:, 0])
    np.testing.assert_array_equal(forecasts["wind"][4, :LEADS].values, fields(at(4), channels=2)[:, 1])
    assert np.isnan(forecasts["rain_rate"][:3, LEADS:].values).all()
    assert np.isnan(forecasts["wind"][:4].values).all()
    assert forecasts["quality_flag"].values.tolist() == ["good"] * 4 + ["filled"]
    assert forecasts["wind"].attrs["units"] == "mm h-1"
    check_forecasts(forecasts)


def placed(crs: pyproj.CRS | None, units: str = "mm h-1", y_units: str = "km") -> xr.Dataset:
    axes = [
        xr.Variable(axis, 2.0 * np.arange(size), {"units": y_units}) for axis, size in (("y", HEIGHT), ("x", WIDTH))
    ]
    return grid_template(axes[0], axes[1], {"rain_rate": {**RAIN, "units": units}}, {}, crs)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (grid(x_first=0.5), "x starts at 0.5, expected 0 km"),
        (grid(size=(HEIGHT, WIDTH + 1)), "x has 8 cells, expected 7"),
        (placed(None, units="mm"), "units of rain_rate are 'mm', expected 'mm h-1'"),
        (placed(None, y_units="m"), "units of y are 'm', expected 'km'"),
        (placed(pyproj.CRS.from_epsg(3035)), "expected missing"),
    ],
    ids=["shifted", "size", "units", "axis units", "crs"],
)
def test_other_grids_and_units_are_refused(folder: Path, other: xr.Dataset, difference: str) -> None:
    publish(folder, at(3), fields(at(3), size=(other.sizes["y"], other.sizes["x"])), on=other)
    with pytest.raises(InputError, match=rf"2020-10-31T06:00:00Z and 2020-10-31T06:15:00Z .*{difference}.*choose"):
        open_forecasts(folder)
    assert open_forecasts(folder, at(3)).sizes["init_time"] == 1


def test_the_crs_stays_with_the_forecasts(tmp_path: Path) -> None:
    on = placed(pyproj.CRS.from_epsg(3035))
    for number in range(2):
        publish(tmp_path, at(number), on=on)
    forecasts = open_forecasts(tmp_path)
    assert pyproj.CRS.from_cf(forecasts["spatial_ref"].attrs) == pyproj.CRS.from_epsg(3035)
    assert forecasts["rain_rate"].attrs["grid_mapping"] == "spatial_ref"
    assert {axis: forecasts[axis].attrs["units"] for axis in ("y", "x")} == {"y": "km", "x": "km"}


def test_a_revision_takes_the_place_of_what_it_revises(folder: Path) -> None:
    held = open_forecasts(folder, at(1), at(1))
    revised = fields(at(40))
    assert publish(folder, at(1), revised, revision=1) == path_of(folder, at(1), 1)
    forecasts = open_forecasts(folder)
    assert forecasts.sizes["init_time"] == CYCLES
    np.testing.assert_array_equal(forecasts["rain_rate"][1].values, revised[:, 0])
    np.testing.assert_array_equal(held["rain_rate"][0].values, fields(at(1))[:, 0])  # who had opened it still reads it
    with closing(Ledger(folder / archive.LEDGER, read_only=True)) as ledger:
        assert [(row.revision, row.state) for row in ledger.cycles(at(1), at(1))] == [
            (0, State.SUPERSEDED),
            (1, State.PUBLISHED),
        ]
        assert archive.audit(folder, ledger) == []


def test_a_process_that_was_frozen_cannot_publish(folder: Path) -> None:
    before = (folder / CATALOGUE).read_bytes()
    with writing(folder) as ledger:
        cycle = claim(ledger, at(3))
        with Ledger(folder / archive.LEDGER) as other:
            other.take_token("other")
            with pytest.raises(BusyError, match="taken over"):
                issue(folder, ledger, cycle)
    assert (folder / CATALOGUE).read_bytes() == before
    assert not path_of(folder, at(3)).exists()
    assert open_forecasts(folder).sizes["init_time"] == CYCLES
    publish(folder, at(3))
    assert open_forecasts(folder).sizes["init_time"] == CYCLES + 1


def test_a_name_that_is_taken_is_not_overwritten(folder: Path) -> None:
    with writing(folder) as ledger:
        cycle = claim(ledger, at(3))
        path_of(folder, at(3)).mkdir()
        with pytest.raises(FileExistsError):
            issue(folder, ledger, cycle)
    assert open_forecasts(folder).sizes["init_time"] == CYCLES


def test_a_disk_that_gives_back_something_else_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rot(position: int, name: str) -> None:
        if name == "store_written":
            for chunk in folder.glob("forecasts/.*/rain_rate/c/0/0/0/0"):
                content = bytearray(chunk.read_bytes())
                content[position] ^= 1
                chunk.write_bytes(content)

    size = (path_of(folder, START) / "rain_rate/c/0/0/0/0").stat().st_size
    for position in (0, 20, 100, size - 10):
        monkeypatch.setattr(archive, "failpoint", partial(rot, position))
        with pytest.raises(DamagedError, match=r"rain_rate: the disk does not give back what was written"):
            publish(folder, at(3))
    monkeypatch.undo()
    assert not list(folder.glob("forecasts/.*"))
    assert open_forecasts(folder).sizes["init_time"] == CYCLES
    publish(folder, at(3))


def test_no_space_is_said_before_anything_is_written(folder: Path) -> None:
    free = archive.free_bytes(folder)
    with pytest.raises(CannotWriteError, match=r"bytes free, expected \d+ for .*: free \d+ MB there or lower live"):
        publish(folder, at(3), reserve=2 * free)  # others use the disk too
    assert not list(folder.glob("forecasts/.*"))


def test_a_reader_beyond_the_catalogue_is_not_disturbed_by_a_killed_writer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "CATALOGUE_CYCLES", 2)
    assert ended(start(failing, "before_commit:kill", publish, folder, at(3))) == -signal.SIGKILL
    assert open_forecasts(folder, end=at(2)).sizes["init_time"] == CYCLES


Events = list[tuple[str, str]]


def watch(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> Events:
    """Return a list that will hold what is asked of the disk, in order."""
    events: Events = []
    fsync, rename, replace_ = os.fsync, os.rename, os.replace

    def seen(number: int) -> None:
        fsync(number)
        events.append(("sync", str(Path(f"/proc/self/fd/{number}").readlink())))

    def renamed(kind: str, act: Callable[[str, str], None]) -> Callable[[str, str], None]:
        def watched(source: str, target: str) -> None:
            act(source, target)
            events.append((kind, str(target)))

        return watched

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(os, "rename", renamed("rename", rename))
    monkeypatch.setattr(os, "replace", renamed("replace", replace_))
    ledger._db.set_trace_callback(lambda statement: events.append(("sql", statement.split()[0])))
    return events


def test_the_disk_knows_each_step_before_the_next(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with writing(folder) as ledger:
        cycle = claim(ledger, at(3))
        events = watch(monkeypatch, ledger)
        target = issue(folder, ledger, cycle)
        ledger._db.set_trace_callback(None)
        staging = staging_of(target, ledger.token)
    monkeypatch.undo()
    renamed = events.index(("rename", str(target)))
    inside = [Path(staging, path.relative_to(target)) for path in (target, *target.rglob("*"))]
    last = {str(path): max(i for i, it in enumerate(events[:renamed]) if it == ("sync", str(path))) for path in inside}
    for path in inside:
        assert all(last[str(inner)] < last[str(path)] for inner in inside if path in inner.parents)
    writes = [i for i, (kind, _) in enumerate(events[:renamed]) if kind in ("rename", "replace")]
    assert not writes or max(writes) < min(last.values())  # zarr's own, of single files
    after = [it for it in events[renamed:] if it[0] != "sql" or it[1] in ("COMMIT", "INSERT")]
    inserts = [it for it in after if it == ("sql", "INSERT")]
    assert inserts
    assert [it for it in after if it not in inserts] == [
        ("rename", str(target)),
        ("sync", str(target.parent)),
        ("sync", str(folder / f".{CATALOGUE}.partial")),
        ("replace", str(folder / CATALOGUE)),
        ("sync", str(folder)),
        ("sql", "COMMIT"),
    ]
    begin = max(i for i, it in enumerate(events) if it == ("sql", "BEGIN"))
    assert max(last.values()) < begin < renamed  # little is done while others wait


def test_audit_finds_damage_wherever_it_is(folder: Path) -> None:
    def audit() -> list[str]:
        with Ledger(folder / archive.LEDGER, read_only=True) as ledger:
            return archive.audit(folder, ledger)

    assert audit() == []
    chunk = path_of(folder, START) / "x/c/0"
    chunk.write_bytes(chunk.read_bytes() + b"x")
    shutil.rmtree(path_of(folder, at(1)))
    (folder / CATALOGUE).write_bytes(b"{}")
    chunk_line, gone, catalogue = audit()
    assert f"{chunk}: is " in chunk_line
    assert f"{path_of(folder, at(1)) / MANIFEST}: cannot be read" in gone
    assert f"{folder / CATALOGUE}: differs from the ledger" in catalogue
    path = folder / archive.LEDGER
    path.write_bytes(path.read_bytes().replace(b"published", b"publishex", 1))
    (line,) = audit()
    assert "ledger.sqlite: " in line
