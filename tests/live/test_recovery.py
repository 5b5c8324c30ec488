"""What a start finds after whatever happened, row by row, and what retention takes away."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline.config import Retention
from fieldcast.pipeline.datasets.manifest import MANIFEST
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive import recovery
from fieldcast.pipeline.live.archive.exports import write_copies
from fieldcast.pipeline.live.archive.ledger import LEDGER, Cycle, Ledger, State
from fieldcast.pipeline.live.archive.publish import CATALOGUE, COPIES, path_of, read_catalogue
from fieldcast.pipeline.live.archive.recovery import GRACE, QUARANTINE, require_present, retire
from tests.live.publishing import ATTEMPTS, START, at, claim, fields, grid, issue, publish, writing

CYCLES = 3
Rows = list[tuple[int, int, State]]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "live"
    for number in range(CYCLES):
        publish(folder, at(number))
    return folder


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a live folder of one's own with three published cycles."""
    archive._checked.cache_clear()
    yield Path(shutil.copytree(published, tmp_path / "live"))
    archive._checked.cache_clear()


def recovered(folder: Path) -> Rows:
    """Start as a cycle does and return number, revision and state of every row."""
    with writing(folder) as ledger:
        found = [(int((it.init_time - START) / timedelta(minutes=5)), it.revision, it.state) for it in ledger.cycles()]
        assert archive.catalogue_is_current(folder, ledger)
        ledger.check()
    assert not list(folder.glob("forecasts/.*"))
    return found


def visible(folder: Path) -> list[int]:
    """Return the numbers of the cycles that readers get, each with the values that were published."""
    forecasts = archive.open_forecasts(folder).load()
    moments = [archive.from_numpy(it) for it in forecasts["init_time"].values]
    for moment, values in zip(moments, forecasts["rain_rate"].values, strict=True):
        np.testing.assert_array_equal(values, fields(moment)[:, 0])
    return [int((it - START) / timedelta(minutes=5)) for it in moments]


def events(folder: Path, kind: str) -> list[str]:
    with Ledger(folder / LEDGER, read_only=True) as ledger:
        return [it["detail"] for it in ledger.events() if it["event"] == kind]


PUBLISHED: Rows = [(number, 0, State.PUBLISHED) for number in range(CYCLES)]


def stage_by_hand(folder: Path, number: int, attempts: int = 1) -> Path:
    """Leave a cycle as one does that is killed before its forecast has its name; return where it was writing."""
    with writing(folder) as ledger:
        for _ in range(attempts - 1):
            claim(ledger, at(number))
    with writing(folder) as ledger:
        cycle = claim(ledger, at(number))
        target = path_of(folder, at(number))
        made = archive.Issue(at(number), 0, "convlstm", "test/1", "good", 0, f"06{5 * number:02d}0", "c" * 64, 5)
        staging, _ = archive.stage(target, made, grid(), fields(at(number))[None], cycle.token)
    return staging


def test_nothing_to_do(folder: Path) -> None:
    before = (folder / CATALOGUE).read_bytes()
    assert recovered(folder) == PUBLISHED
    assert (folder / CATALOGUE).read_bytes() == before


def test_what_was_being_written_is_deleted_and_the_cycle_is_due_again(folder: Path) -> None:
    staging = stage_by_hand(folder, 3)
    assert staging.is_dir()
    (folder / "forecasts/.nfs0001").touch()
    assert recovered(folder) == [*PUBLISHED, (3, 0, State.DUE)]
    assert events(folder, "recovered") == ["interrupted in attempt 1"]
    assert publish(folder, at(3))
    assert visible(folder) == [0, 1, 2, 3]


def test_a_cycle_that_was_tried_often_enough_has_failed(folder: Path) -> None:
    stage_by_hand(folder, 3, ATTEMPTS)
    assert recovered(folder) == [*PUBLISHED, (3, 0, State.FAILED)]
    with Ledger(folder / LEDGER, read_only=True) as ledger:
        cycle = ledger.cycle(at(3))
    assert cycle is not None
    assert cycle.reason == f"interrupted in attempt {ATTEMPTS}"


@pytest.mark.parametrize("attempts", [1, ATTEMPTS])
def test_a_whole_forecast_of_a_running_cycle_is_adopted(folder: Path, attempts: int) -> None:
    staging = stage_by_hand(folder, 3, attempts)
    staging.rename(path_of(folder, at(3)))
    assert recovered(folder) == [*PUBLISHED, (3, 0, State.PUBLISHED)]
    assert visible(folder) == [0, 1, 2, 3]
    with Ledger(folder / LEDGER, read_only=True) as ledger:
        cycle = ledger.cycle(at(3))
    assert cycle is not None
    assert (cycle.model, cycle.model_version, cycle.quality, cycle.run_key) == ("convlstm", "test/1", "good", "06150")
    assert cycle.attempt == attempts
    assert cycle.reason == "adopted: it was complete when its process ended"


@pytest.mark.parametrize("state", [State.DUE, State.FAILED])
def test_so_is_one_whose_cycle_gave_up_after_the_rename(folder: Path, state: State) -> None:
    stage_by_hand(folder, 3).rename(path_of(folder, at(3)))
    with Ledger(folder / LEDGER) as ledger, ledger.writing():
        cycle = ledger.cycle(at(3))
        assert cycle is not None
        ledger.put(replace(cycle, state=state), str(state), START)
    assert recovered(folder) == [*PUBLISHED, (3, 0, State.PUBLISHED)]


def test_a_degraded_forecast_stays_degraded(folder: Path) -> None:
    publish(folder, at(3), quality="filled")
    (folder / LEDGER).unlink()
    assert recovered(folder) == [*PUBLISHED, (3, 0, State.DEGRADED)]


@pytest.mark.parametrize("file", ["rain_rate/c/0/0/0/0", "zarr.json", MANIFEST])
def test_a_damaged_forecast_of_a_running_cycle_is_put_aside(folder: Path, file: str) -> None:
    target = path_of(folder, at(3))
    stage_by_hand(folder, 3).rename(target)
    content = bytearray((target / file).read_bytes())
    content[len(content) // 2] ^= 4
    (target / file).write_bytes(content)
    assert recovered(folder) == [*PUBLISHED, (3, 0, State.DUE)]
    assert not target.exists()
    assert (folder / QUARANTINE / target.name / file).read_bytes() == content
    (reason,) = events(folder, "quarantined")
    assert f"{target / file}: " in reason
    publish(folder, at(3))
    assert visible(folder) == [0, 1, 2, 3]


def test_a_second_damaged_forecast_takes_the_place_of_the_first_in_quarantine(folder: Path) -> None:
    target = path_of(folder, at(3))
    for content in ("first", "second"):
        target.mkdir()
        (target / "file").write_text(content)
        assert recovered(folder) == PUBLISHED
        assert (folder / QUARANTINE / target.name / "file").read_text() == content


def test_a_manifest_without_what_a_row_needs_is_put_aside(folder: Path) -> None:
    (folder / LEDGER).unlink()
    manifest = path_of(folder, at(1)) / MANIFEST
    manifest.write_text(manifest.read_text().replace('"model"', '"modem"'))
    assert recovered(folder) == [PUBLISHED[0], PUBLISHED[2]]
    assert visible(folder) == [0, 2]


def test_a_forecast_under_the_name_of_another_is_put_aside(folder: Path) -> None:
    shutil.copytree(path_of(folder, at(1)), path_of(folder, at(7)))
    assert recovered(folder) == PUBLISHED
    (reason,) = events(folder, "quarantined")
    assert reason.endswith("is the forecast of 2020-10-31T06:05:00Z r0")


def test_a_lost_ledger_is_written_anew_from_the_forecasts(folder: Path) -> None:
    publish(folder, at(1), fields(at(1)), revision=1)
    with Ledger(folder / LEDGER, read_only=True) as ledger:
        before = ledger.names()
    whole = read_catalogue(folder)
    (folder / LEDGER).unlink()
    seen = []
    write = archive.write_catalogue

    def watched(folder: Path, ledger: Ledger) -> None:
        write(folder, ledger)
        seen.append(read_catalogue(folder))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(archive, "write_catalogue", watched)
        assert recovered(folder) == [
            (0, 0, State.PUBLISHED),
            (1, 0, State.SUPERSEDED),
            (1, 1, State.PUBLISHED),
            (2, 0, State.PUBLISHED),
        ]
    assert seen == [whole]  # readers never found fewer
    with Ledger(folder / LEDGER, read_only=True) as ledger:
        assert ledger.names() == before
        assert len(ledger.pending()) == 4
    assert visible(folder) == [0, 1, 2]


def test_forecasts_are_compared_with_the_ledger_only_when_their_folder_has_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = []
    real = Ledger.names
    monkeypatch.setattr(Ledger, "names", lambda ledger: scans.append(1) or real(ledger))
    for number in (1, 1, 1):
        with writing(folder) as ledger:
            recovery.settle(folder, ledger)
        assert len(scans) == number
    publish(folder, at(3))  # ends as after a kill: nothing is remembered
    assert len(scans) == 1
    assert recovered(folder)[-1] == (3, 0, State.PUBLISHED)
    assert len(scans) == 2


def test_an_older_ledger_is_brought_up_to_date(folder: Path, tmp_path: Path) -> None:
    old = shutil.copy(folder / LEDGER, tmp_path)
    for number in (3, 4):
        publish(folder, at(number))
    shutil.copy(old, folder / LEDGER)
    assert recovered(folder) == [*PUBLISHED, (3, 0, State.PUBLISHED), (4, 0, State.PUBLISHED)]
    assert visible(folder) == [0, 1, 2, 3, 4]


def test_a_published_forecast_that_has_gone_is_not_made_again_silently(folder: Path) -> None:
    target = path_of(folder, at(1))
    with Ledger(folder / LEDGER, read_only=True) as ledger:
        cycle = ledger.cycle(at(1))
    assert cycle is not None
    require_present(folder, cycle)
    shutil.rmtree(target)
    assert recovered(folder) == PUBLISHED
    with pytest.raises(DamagedError, match=rf"{target}: is gone.*fieldcast cycle --at 20201031T060500Z --supersede"):
        require_present(folder, cycle)
    with pytest.raises(DamagedError, match=rf"{target}/manifest.json: cannot be read"):
        visible(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 1, "forecasts": [], "token": 1, "sha256": ""}', None])
def test_a_catalogue_that_is_not_as_the_ledger_is_written_anew(folder: Path, content: bytes | None) -> None:
    path = folder / CATALOGUE
    whole = json.loads(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    assert recovered(folder) == PUBLISHED
    assert json.loads(path.read_bytes())["forecasts"] == whole["forecasts"]


def test_an_older_catalogue_is_brought_up_to_date(folder: Path) -> None:
    old = (folder / CATALOGUE).read_bytes()
    publish(folder, at(3))
    (folder / CATALOGUE).write_bytes(old)
    recovered(folder)
    assert visible(folder) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "name", ["notes.txt", "20201031T060000Z", "20201031T060000Z.r0.zarr", "2020-10-31.zarr", "x.zarr"]
)
def test_anything_else_among_the_forecasts_is_named(folder: Path, name: str) -> None:
    (folder / "forecasts" / name).mkdir()
    with pytest.raises(InputError, match=rf"forecasts/{name}: not a published forecast: move it out of"):
        recovered(folder)


def retired(folder: Path, rules: Retention, hours: float = 0.0) -> list[str]:
    with writing(folder) as ledger:
        paths = retire(folder, ledger, rules, START + timedelta(hours=hours))
    return [path.name for path in paths]


def names(*numbers: int) -> list[str]:
    return [path_of(Path(), at(number)).name for number in numbers]


def stores(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "forecasts").iterdir())


def test_retention_by_number(folder: Path) -> None:
    rules = Retention(days=None, cycles=2)
    assert retired(folder, Retention(days=None, cycles=None)) == []
    assert retired(folder, Retention(days=None, cycles=3)) == []
    assert retired(folder, rules) == names(0)
    assert visible(folder) == [1, 2]
    assert retired(folder, rules) == []
    assert stores(folder) == names(0, 1, 2)


def test_retention_by_age_keeps_the_newest_whatever_its_age(folder: Path) -> None:
    rules = Retention(days=1, cycles=None)
    assert retired(folder, rules, 24) == []
    assert retired(folder, rules, 24.1) == names(0, 1)
    assert visible(folder) == [2]
    assert retired(folder, rules, 24000) == []
    assert visible(folder) == [2]


def test_both_rules_together(folder: Path) -> None:
    assert retired(folder, Retention(days=1, cycles=1), 0) == names(0, 1)
    assert visible(folder) == [2]


def test_what_left_the_catalogue_can_be_read_for_a_day_more(folder: Path) -> None:
    rules = Retention(days=None, cycles=1)
    held = archive.open_forecasts(folder)
    assert retired(folder, rules) == names(0, 1)
    retired(folder, rules, GRACE / timedelta(hours=1) - 0.1)
    assert stores(folder) == names(0, 1, 2)
    np.testing.assert_array_equal(held["rain_rate"][0].values, fields(at(0))[:, 0])
    retired(folder, rules, -1000)  # the clock was set back
    assert stores(folder) == names(0, 1, 2)
    retired(folder, rules, GRACE / timedelta(hours=1))
    assert stores(folder) == names(2)
    assert events(folder, "deleted") == names(0, 1)
    assert recovered(folder) == [(0, 0, State.RETIRED), (1, 0, State.RETIRED), (2, 0, State.PUBLISHED)]
    assert publish(folder, at(3))
    assert visible(folder) == [2, 3]


def test_revisions_leave_with_what_revises_them(folder: Path) -> None:
    publish(folder, at(1), fields(at(1)), revision=1)
    rules = Retention(days=None, cycles=2)
    assert retired(folder, rules) == names(0)
    publish(folder, at(3))
    assert retired(folder, rules) == ["20201031T060500Z.r1.zarr", "20201031T060500Z.zarr"]
    retired(folder, rules, 24)
    assert stores(folder) == names(2, 3)
    assert visible(folder) == [2, 3]


def test_copies_leave_with_their_forecast(folder: Path) -> None:
    for number in range(CYCLES):
        forecast = archive.open_forecasts(folder, at(number), at(number))
        write_copies(forecast, folder / COPIES, path_of(folder, at(number)).stem, ["netcdf"])
    rules = Retention(days=None, cycles=1)
    retired(folder, rules)
    assert len(list((folder / COPIES).iterdir())) == CYCLES
    retired(folder, rules, 24)
    assert [path.name for path in (folder / COPIES).iterdir()] == ["20201031T061000Z.nc"]


def test_copies_of_a_forecast_whose_deletion_was_interrupted_do_not_stay(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecast = archive.open_forecasts(folder, at(0), at(0))
    write_copies(forecast, folder / COPIES, path_of(folder, at(0)).stem, ["netcdf"])
    rules = Retention(days=None, cycles=1)
    retired(folder, rules)
    monkeypatch.setenv("FIELDCAST_FAILPOINT", "trashed:raise")
    with pytest.raises(RuntimeError, match="trashed"):
        retired(folder, rules, 24)
    monkeypatch.delenv("FIELDCAST_FAILPOINT")
    retired(folder, rules, 24)
    assert stores(folder) == names(2)
    assert list((folder / COPIES).iterdir()) == []


def test_deleting_takes_nothing_else(folder: Path) -> None:
    kept = directory_digest(path_of(folder, at(2)))
    retired(folder, Retention(days=None, cycles=1))
    retired(folder, Retention(days=None, cycles=1), 24)
    assert directory_digest(path_of(folder, at(2))) == kept
    assert (folder / LEDGER).is_file()


def test_a_failed_revision_can_be_asked_for_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It failed after its forecast had its name: the next start adopts it."""
    monkeypatch.setenv("FIELDCAST_FAILPOINT", "renamed:eio")
    with writing(folder) as ledger:
        cycle: Cycle = claim(ledger, at(1), 1)
        with pytest.raises(OSError, match="Input/output"):
            issue(folder, ledger, cycle)
        with ledger.writing(fenced=True):
            ledger.put(replace(cycle, state=State.FAILED), "failed", START)
    monkeypatch.delenv("FIELDCAST_FAILPOINT")
    assert (1, 1, State.PUBLISHED) in recovered(folder)
    assert visible(folder) == [0, 1, 2]
