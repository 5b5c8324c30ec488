"""What a rehearsal has left behind, held against what it must have: the checks of `fieldcast replay`."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.table import Table

from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.datasets.times import to_numpy
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive.ledger import OPEN, VISIBLE, Cycle, Ledger, State
from fieldcast.pipeline.live.archive.recovery import QUARANTINE
from fieldcast.pipeline.live.clock import iso, parse
from fieldcast.pipeline.live.rehearsal import Expected, Setting
from fieldcast.pipeline.sources.files import file_sha256

MADE = [str(state) for state in VISIBLE]  # the events that say that a forecast has been published
CONTENT = ("cycles", "verifications")  # tables of the ledger that a rerun must not change
ALL_EVENTS = 10**9


@dataclass
class Machine:
    """What was done to the schedulers, and how they took it."""

    struck: Counter[str] = field(default_factory=Counter)  # faults of the machine that took place
    surprises: list[str] = field(default_factory=list)  # exit codes and errors that nothing explains
    wakings: int = 0  # of one scheduler
    side_by_side: int = 0  # wakings of both in two processes at once
    tracker_seconds: float = 0.0  # the longest time that a tracker that was down has cost


@dataclass
class Findings:
    """What was found; a list holds a line for each thing that must not be."""

    due: int
    states: Counter[str]
    flags: Counter[str]  # quality flags of the forecasts that are there
    verified: int
    events: Counter[str]
    feed: dict[str, int]  # faults of the feed: frames that each befell
    machine: Machine
    missed: list[str]
    duplicates: list[str]
    partial: list[str]  # forecasts that are not whole, not as they were written, or not the right ones
    misflagged: list[str]  # cycles whose flag is not that of what had arrived by then
    unverified: list[str]
    unsent: list[str] = field(default_factory=list)
    changed_by_rerun: list[str] = field(default_factory=list)
    unlike_undisturbed: list[str] = field(default_factory=list)
    seconds: float = 0.0
    page: Path | None = None

    def faults(self) -> dict[str, list[str]]:
        """Return the lists that must be empty, by what they are about."""
        return {
            "missed cycles": self.missed,
            "duplicate cycles": self.duplicates,
            "partial, damaged or wrong forecasts": self.partial,
            "cycles with a wrong quality flag": self.misflagged,
            "forecasts not verified, or not in time": self.unverified,
            "records that the tracker lacks": self.unsent,
            "changed by a rerun": self.changed_by_rerun,
            "unlike an undisturbed run": self.unlike_undisturbed,
            "surprises": self.machine.surprises,
        }

    def table(self) -> Table:
        """Return the findings for a terminal: what happened, what must be zero, what went wrong on purpose."""
        made = Table(show_header=False, box=box.SIMPLE, pad_edge=False)
        made.add_row("cycles due", str(self.due))
        degraded = ", ".join(f"{count} {flag}" for flag, count in sorted(self.flags.items()) if flag != "good")
        for state in (State.PUBLISHED, State.DEGRADED, State.SKIPPED, State.FAILED):
            more = f": {degraded}" if state is State.DEGRADED and degraded else ""
            made.add_row(str(state), f"{self.states[state]}{more}")
        made.add_row("verified", str(self.verified), end_section=True)
        for name, lines in self.faults().items():
            made.add_row(name, f"[bold {'red' if lines else 'green'}]{len(lines)}")
        made.add_section()
        made.add_row("faults of the feed", _counted(self.feed) or "none")
        made.add_row("faults of the machine", _counted(self.machine.struck) or "none")
        made.add_row("wakings", f"{self.machine.wakings}, {self.machine.side_by_side} times two at once")
        made.add_row("events", _counted(self.events))
        made.add_row("time", f"{self.seconds:.0f} s")
        made.add_row("status page", str(self.page))
        return made

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "cycles": self.due,
            **{str(state): self.states[state] for state in State},
            "quality_flags": dict(self.flags),
            "verified": self.verified,
            "events": dict(self.events),
            "feed_faults": self.feed,
            "machine_faults": dict(self.machine.struck),
            "wakings": self.machine.wakings,
            "side_by_side": self.machine.side_by_side,
            "tracker_down_seconds": round(self.machine.tracker_seconds, 2),
            "seconds": round(self.seconds, 1),
            "page": str(self.page) if self.page else None,
            "faults": {name.replace(" ", "_"): lines for name, lines in self.faults().items()},
        }


def examine(setting: Setting, expected: Sequence[Expected], folder: Path, machine: Machine) -> Findings:
    """Return how what lies in the live folder compares with what is expected."""
    with Ledger(folder / archive.LEDGER, read_only=True) as ledger:
        rows = ledger.cycles()
        events = ledger.events(ALL_EVENTS)
        verifications = {iso(it.init_time): it.at for it in ledger.verifications()}
        damaged = archive.audit(folder, ledger)
        pending = [f"{content['kind']} of {content['at']}" for _, content in ledger.pending(-1)]
    by_time = {row.init_time: row for row in rows}
    visible = [row for row in rows if row.state in VISIBLE]
    return Findings(
        due=len(expected),
        states=Counter(str(row.state) for row in rows),
        flags=Counter(row.quality for row in visible),
        verified=len(verifications),
        events=Counter(event["event"] for event in events),
        feed={kind: len(times) for kind, times in setting.plan.faults.items()},
        machine=machine,
        missed=_missed(expected, by_time),
        duplicates=_duplicates(rows, events, folder),
        partial=damaged + _leftovers(folder, visible) + _wrong(setting, expected, folder),
        misflagged=_misflagged(expected, by_time),
        unverified=_unverified(setting, visible, verifications),
        unsent=pending if machine.struck["tracker down"] else [],
    )


def snapshot(folder: Path) -> dict[str, str]:
    """Return what a rerun must leave as it is: digests of forecasts and catalogue, rows of the ledger."""
    places = [
        folder / archive.CATALOGUE,
        *(folder / archive.FORECASTS).rglob("*"),
        *(folder / archive.COPIES).rglob("*"),
    ]
    found = {str(path.relative_to(folder)): file_sha256(path) for path in places if path.is_file()}
    with closing(sqlite3.connect(f"{(folder / archive.LEDGER).resolve().as_uri()}?mode=ro", uri=True)) as ledger:
        for table in CONTENT:
            for row in ledger.execute(f"SELECT * FROM {table}"):
                found[f"{table}: {row[0]}, revision {row[1]}"] = repr(row[2:])
    return found


def changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Return the names of what is not the same in two snapshots."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _missed(expected: Sequence[Expected], rows: dict[datetime, Cycle]) -> list[str]:
    """Return the due cycles that have no row, are still open, or have failed."""
    missed = []
    for it in expected:
        row = rows.get(it.init_time)
        if row is None or row.state in OPEN:
            missed.append(f"{iso(it.init_time)}: {row.state if row else 'not in the ledger'}")
        elif row.state is State.FAILED:
            missed.append(f"{iso(it.init_time)}: failed, {row.reason}")
    return missed


def _duplicates(rows: Sequence[Cycle], events: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """Return the init times that ledger, events, folder or catalogue have more than once."""
    published = Counter(event["init_time"] for event in events if event["event"] in MADE)
    stored = Counter(iso(row.init_time) for row in rows)
    names = [path.name for path in (folder / archive.FORECASTS).glob("[!.]*")]
    there = Counter(iso(parse(name.partition(".")[0])) for name in names)
    seen = Counter(entry["init_time"] for entry in _catalogue(folder))
    found = []
    for what, counts in (("published", published), ("rows", stored), ("forecasts", there), ("catalogue", seen)):
        found += [f"{init_time}: {count} times ({what})" for init_time, count in sorted(counts.items()) if count > 1]
    return found


def _leftovers(folder: Path, visible: Sequence[Cycle]) -> list[str]:
    """Return what lies beside the forecasts that the ledger knows."""
    known = {archive.path_of(folder, row.init_time, row.revision) for row in visible}
    forecasts, aside = folder / archive.FORECASTS, folder / QUARANTINE
    places = [*forecasts.iterdir(), *(aside.iterdir() if aside.is_dir() else ())]
    return [f"{path}: nothing that the ledger knows" for path in sorted(places) if path not in known]


def _wrong(setting: Setting, expected: Sequence[Expected], folder: Path) -> list[str]:
    """Return the forecasts that readers do not get, or whose values or flags are not what had arrived by then."""
    wanted = [it for it in expected if it.quality]
    try:
        forecasts = archive.open_forecasts(folder)
    except (DamagedError, InputError) as error:
        return [f"readers get an error: {error}"]
    with forecasts:
        there = set(forecasts[INIT_TIME].values.astype("datetime64[ns]"))
        wrong = [f"{iso(it.init_time)}: readers do not see it" for it in wanted if to_numpy(it.init_time) not in there]
        for it in wanted:
            if to_numpy(it.init_time) in there:
                stored = forecasts.sel({INIT_TIME: to_numpy(it.init_time)})
                wrong += [f"{iso(it.init_time)}: {line}" for line in _differences(setting, it, stored)]
    return wrong


def _differences(setting: Setting, expected: Expected, stored: xr.Dataset) -> Iterator[str]:
    right = setting.forecast_of(expected)
    for i, name in enumerate(setting.archive.names):
        values = stored[name].values
        if values.shape != right[:, i].shape or not np.array_equal(values, right[:, i], equal_nan=True):
            yield f"{name} is not the forecast of the frames that had arrived"
    told = str(stored["quality_flag"].values), int(stored["n_input_missing"].values)
    if told != (expected.quality, expected.missing):
        yield f"readers are told {told}, expected {(expected.quality, expected.missing)}"


def _misflagged(expected: Sequence[Expected], rows: dict[datetime, Cycle]) -> list[str]:
    """Return the cycles whose state, flag or count of missing frames the plan of faults does not explain."""
    states = {"good": State.PUBLISHED, "": State.SKIPPED}
    found = []
    for it in expected:
        row = rows.get(it.init_time)
        right = (states.get(it.quality, State.DEGRADED), it.quality, it.missing)
        if row is not None and (got := (row.state, row.quality, row.n_input_missing)) != right:
            found.append(f"{iso(it.init_time)}: {', '.join(map(str, got))}; expected {', '.join(map(str, right))}")
    return found


def _unverified(setting: Setting, visible: Sequence[Cycle], verified: dict[str, datetime]) -> list[str]:
    """Return the forecasts that were not verified, or before their truth was whole or given up."""
    step = setting.archive.step
    found = []
    for row in visible:
        at = verified.get(iso(row.init_time))
        valid_times = [row.init_time + (i + 1) * step for i in range(setting.rehearsal.horizon)]
        if at is None:
            found.append(f"{iso(row.init_time)}: not verified")
        elif not all(setting.plan.present(valid_times, at)) and at < valid_times[-1] + setting.patience:
            found.append(f"{iso(row.init_time)}: verified at {iso(at)}, before its truth was whole")
    return found


def _catalogue(folder: Path) -> list[dict[str, Any]]:
    try:
        return archive.read_catalogue(folder)
    except (DamagedError, InputError):
        return []


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
