"""Recovery from cycles that were killed, and retirement of old forecasts."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from fieldcast.pipeline.config import Retention
from fieldcast.pipeline.datasets.atomic import fsync_folder, make_folder, rename
from fieldcast.pipeline.datasets.manifest import MANIFEST
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live.archive.durable import failpoint
from fieldcast.pipeline.live.archive.exports import remove_copies
from fieldcast.pipeline.live.archive.ledger import OPEN, VISIBLE, Cycle, Ledger, State
from fieldcast.pipeline.live.archive.publish import (
    COPIES,
    FORECASTS,
    catalogue_is_current,
    check,
    enter,
    manifest_digest,
    path_of,
    write_catalogue,
)
from fieldcast.pipeline.live.clock import iso, parse, stamp

QUARANTINE = "quarantine"
SEEN = "forecasts_seen"  # the fact that holds when the folder of forecasts had last changed
GRACE = timedelta(hours=24)  # between leaving the catalogue and being deleted: they may be open
Name = tuple[str, int]  # init time in the format of the ledger, revision


def recover(folder: Path, ledger: Ledger, max_attempts: int, at: datetime) -> None:
    """Bring ledger, forecasts and catalogue into agreement after a crash; the caller holds lock and token.

    Unfinished files are deleted. A forecast in its final place without a row is adopted if every byte is right, else
    put into quarantine. A row that was running without a forecast is due again, unless it has been tried
    `max_attempts` times.
    """
    make_folder(folder / FORECASTS)
    if ledger.fact(SEEN) != _changed_at(folder):  # else nothing came or went since the last orderly end
        sweep(folder)
        _adopt(folder, ledger, at)
    for cycle in ledger.cycles(states=[State.RUNNING]):
        with ledger.writing(fenced=True):
            state = State.FAILED if cycle.attempt >= max_attempts else State.DUE
            reason = f"interrupted in attempt {cycle.attempt}"
            ledger.put(replace(cycle, state=state, reason=reason, ended_at=at), "recovered", at)
    if not catalogue_is_current(folder, ledger):
        with ledger.writing(fenced=True):
            write_catalogue(folder, ledger)


def settle(folder: Path, ledger: Ledger) -> None:
    """Remember that ledger and forecasts agree, at an orderly end: the next start need not compare them."""
    if ledger.is_orderly and ledger.fact(SEEN) != (changed_at := _changed_at(folder)):
        with ledger.writing(fenced=True):
            ledger.set_fact(SEEN, changed_at)


def sweep(folder: Path) -> None:
    """Delete files that a process left unfinished; the caller holds the lock."""
    for place in (folder / FORECASTS).glob(".*"):
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink()


def require_present(folder: Path, cycle: Cycle) -> None:
    """Raise `DamagedError` when the forecast of a published row is gone."""
    path = path_of(folder, cycle.init_time, cycle.revision)
    if not (path / MANIFEST).is_file():
        raise DamagedError(
            f"{path}: is gone, but was published according to the ledger: restore it, or fieldcast cycle --at "
            f"{stamp(cycle.init_time)} --supersede"
        )


def retire(folder: Path, ledger: Ledger, rules: Retention, at: datetime) -> list[Path]:
    """Take old forecasts out of the catalogue and, a day later, delete them; return the paths of the former.

    The newest published cycle always stays.
    """
    oldest = at - timedelta(days=rules.days) if rules.days else None
    expired = [row for row in ledger.cycles(until=oldest, states=VISIBLE) if _is_older(row, oldest)] if oldest else []
    surplus = ledger.cycles(states=VISIBLE, skipped=rules.cycles) if rules.cycles else []
    newest = ledger.cycles(states=VISIBLE, newest=1)
    leaving = {_name(row): row for row in (*expired, *surplus) if row not in newest}
    superseded = _superseded_before_all(ledger, leaving, at)
    left = [leaving[name] for name in sorted(leaving)] + superseded
    if left:
        with ledger.writing(fenced=True):
            for row in left:
                ledger.put(replace(row, state=State.RETIRED, retired_at=at), "retired", at, "by age or number")
            write_catalogue(folder, ledger)
    failpoint("retired")
    for row in ledger.to_delete(at - GRACE):
        _delete(folder, ledger, row, at)
    return [path_of(folder, row.init_time, row.revision) for row in left]


def _superseded_before_all(ledger: Ledger, leaving: Mapping[Name, Cycle], at: datetime) -> list[Cycle]:
    """Return the superseded rows of init times before those of all forecasts that stay."""
    superseded = ledger.cycles(states=[State.SUPERSEDED])
    if not superseded:
        return []
    kept = [row.init_time for row in ledger.cycles(states=VISIBLE) if _name(row) not in leaving]
    return [row for row in superseded if row.init_time < (kept[0] if kept else at)]


def _name(row: Cycle) -> Name:
    return iso(row.init_time), row.revision


def _is_older(row: Cycle, moment: datetime) -> bool:
    """Return whether both the init time of a forecast and its making are before a moment: a backfill is young."""
    return row.init_time < moment and (row.ended_at is None or row.ended_at < moment)


def _changed_at(folder: Path) -> str:
    """Return when an entry of the folder of forecasts last came, went or got its name."""
    return str((folder / FORECASTS).stat().st_mtime_ns)


def _adopt(folder: Path, ledger: Ledger, at: datetime) -> None:
    """Enter whole forecasts without a row, and put the others aside."""
    states = ledger.names()
    candidates = [_adopted(folder, ledger, name, place, at) for name, place in _without_row(folder, states)]
    if adopted := [cycle for cycle in candidates if cycle]:
        with ledger.writing(fenced=True):  # all at once: readers never see some of them
            enter(folder, ledger, adopted, at)


def _without_row(folder: Path, states: Mapping[Name, State]) -> list[tuple[Name, Path]]:
    """Return the forecasts in their final places without a row of a published cycle, in order."""
    unfinished = (*OPEN, State.SKIPPED, State.FAILED, None)
    return sorted((name, place) for name, place in _places(folder).items() if states.get(name) in unfinished)


def _adopted(folder: Path, ledger: Ledger, name: Name, place: Path, at: datetime) -> Cycle | None:
    """Return the row of a forecast that is complete; put it aside if it is not."""
    moment = parse(name[0])
    try:
        manifest = check(place)
        if (manifest["init_time"], manifest["revision"]) != name:
            raise DamagedError(f"{place}: is the forecast of {manifest['init_time']} r{manifest['revision']}")
    except DamagedError as error:
        _put_aside(folder, place)
        with ledger.writing(fenced=True):
            ledger.note("quarantined", at, str(error), moment)
        return None
    row = ledger.cycle(moment, name[1]) or Cycle(moment, name[1], due_at=moment, deadline_at=moment)
    return replace(
        row,
        state=State.PUBLISHED if manifest["quality_flag"] == "good" else State.DEGRADED,
        ended_at=at,
        reason="adopted: it was complete when its process ended",
        model=manifest["model"],
        model_version=manifest["model_version"],
        quality=manifest["quality_flag"],
        n_input_missing=manifest["n_input_missing"],
        run_key=manifest["run_key"],
        manifest_sha256=manifest_digest(place),
    )


def _put_aside(folder: Path, place: Path) -> None:
    aside = folder / QUARANTINE
    make_folder(aside)
    if (aside / place.name).exists():
        shutil.rmtree(aside / place.name)
    rename(place, aside / place.name)
    fsync_folder(place.parent)


def _delete(folder: Path, ledger: Ledger, cycle: Cycle, at: datetime) -> None:
    """Delete a forecast that left the catalogue a day ago."""
    place = path_of(folder, cycle.init_time, cycle.revision)
    remove_copies(folder / COPIES, place.name.removesuffix(".zarr"))
    is_there = place.exists()
    if is_there:
        trash = place.with_name(f".{place.name}.trash")
        place.rename(trash)
        fsync_folder(place.parent)
        failpoint("trashed")
        shutil.rmtree(trash)
    with ledger.writing(fenced=True):
        ledger.mark_deleted(cycle)
        if is_there:
            ledger.note("deleted", at, place.name, cycle.init_time)


def _places(folder: Path) -> dict[Name, Path]:
    """Return the forecasts in their final places; raise `InputError` for any other file there."""
    places = {}
    for place in (folder / FORECASTS).iterdir():
        if place.name.startswith("."):
            continue
        moment, _, revision = place.name.removesuffix(".zarr").partition(".r")
        try:
            name = iso(parse(moment)), int(revision or 0)
            right = place == path_of(folder, parse(moment), name[1])
        except ValueError:
            right = False
        if not right:
            raise InputError(f"{place}: not a published forecast: move it out of {place.parent}")
        places[name] = place
    return places
