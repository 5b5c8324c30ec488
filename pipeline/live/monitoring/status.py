"""The status of the schedule: a table for people, an exit code for monitors, JSON for programs.

Nothing here writes to the ledger, asks the tracker or loads a model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from fieldcast.pipeline.config import Drift, Params
from fieldcast.pipeline.datasets.labels import readable
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live import timekeeping
from fieldcast.pipeline.live.archive import publish
from fieldcast.pipeline.live.archive.ledger import LEDGER, OPEN, VISIBLE, Cycle, Ledger, State, Verification
from fieldcast.pipeline.live.archive.publish import CATALOGUE, path_of
from fieldcast.pipeline.live.clock import Clock, iso
from fieldcast.pipeline.live.monitoring import drift, lateness
from fieldcast.pipeline.live.monitoring.verification import Scores, scores_of
from fieldcast.pipeline.live.outcomes import ExitCode
from fieldcast.pipeline.live.places.scores import PlaceScores, place_scores
from fieldcast.pipeline.live.timekeeping import Look

DAY = timedelta(days=1)
LOOK_BACK = 1000  # events, of which the notable ones are shown
NOTABLE = (
    "failed",
    "skipped",
    "recovered",
    "quarantined",
    "copy_failed",
    "copies_complete",
    "refused",
    "impossible",
    "stale_input",
    "drift",
    "drift_over",
    "clock_jump",
    "reopened",
    "out_of_service",
)
SHOWN_EVENTS = 12
COUNTED = (State.PUBLISHED, State.DEGRADED, State.SKIPPED, State.FAILED)  # in the headline, also when zero
STYLES = {
    State.PUBLISHED: "green",
    State.DEGRADED: "yellow",
    State.SKIPPED: "magenta",
    State.FAILED: "bold red",
    State.DUE: "cyan",
    State.RUNNING: "cyan",
    State.SUPERSEDED: "dim",
    State.RETIRED: "dim",
}


@dataclass(frozen=True)
class Status:
    """The schedule at one moment; `late`, `faults` and `alarms` hold a line for each problem."""

    experiment: str
    now: datetime
    drift: Drift
    every: timedelta | None = None  # between init times, as far as it is known
    rows: list[Cycle] = field(default_factory=list)  # the last cycles, one an init time, oldest first
    counts: dict[State, int] = field(default_factory=dict)  # of the last 24 hours
    newest: Cycle | None = None  # forecast that readers see
    late: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # readers get an error
    alarms: list[str] = field(default_factory=list)
    verified: list[Verification] = field(default_factory=list)  # of the last live.drift.days
    pending: int = 0  # records that the tracker does not have yet
    events: list[dict[str, Any]] = field(default_factory=list)  # the notable ones, oldest first
    refused: list[str] = field(default_factory=list)  # files and frames of the feed in the last 24 hours, and why

    @property
    def age(self) -> timedelta | None:
        """Return the time since the init time of the newest forecast."""
        return self.now - self.newest.init_time if self.newest else None

    @cached_property
    def scores(self) -> list[Scores]:
        """Return the pooled scores of the last days, by field."""
        return scores_of(self.verified)

    @cached_property
    def days(self) -> dict[str, list[Scores]]:
        """Return the pooled scores of each day of init times."""
        days = sorted({_day(one) for one in self.verified})
        return {day: scores_of([one for one in self.verified if _day(one) == day]) for day in days}

    @cached_property
    def place_scores(self) -> list[PlaceScores]:
        """Return the scores of the last days for places."""
        fields = sorted({name for one in self.verified for name in one.sums})
        return [score for name in fields for score in place_scores([one.sums.get(name, {}) for one in self.verified])]

    @property
    def model_share(self) -> float | None:
        """Return the share of the model in the seconds of the cycles that ran."""
        ran = [row.timings for row in self.rows if row.timings.get("model")]
        return sum(part["model"] for part in ran) / sum(sum(part.values()) for part in ran) if ran else None

    def exit_code(self) -> ExitCode:
        """Return the code for monitors: a late schedule comes before damage, and damage before an alarm."""
        if self.late:
            return ExitCode.LATE
        if self.faults:
            return ExitCode.DAMAGED
        return ExitCode.ALARM if self.alarms else ExitCode.DONE

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it: times as text, seconds as numbers, undefined values as null."""
        facts = {
            "experiment": self.experiment,
            "now": iso(self.now),
            "exit_code": int(self.exit_code()),
            "every_minutes": self.every / timedelta(minutes=1) if self.every else None,
            "late": self.late,
            "faults": self.faults,
            "alarms": self.alarms,
            "newest": asdict(self.newest) if self.newest else None,
            "newest_age_seconds": self.age.total_seconds() if self.age is not None else None,
            "cycles_in_24_hours": {str(state): count for state, count in self.counts.items()},
            "cycles": [asdict(row) for row in self.rows],
            "model_share": self.model_share,
            "scores": [asdict(scores) | scores.overall for scores in self.scores],
            "scores_by_day": {
                day: [{"field": one.field, "cycles": one.cycles, **one.overall} for one in scores]
                for day, scores in self.days.items()
            },
            "places": [asdict(score) for score in self.place_scores],
            "tracker_pending": self.pending,
            "events": self.events,
            "refused": self.refused,
        }
        plain: dict[str, Any] = _plain(facts)
        return plain


def read_status(params: Params, folder: Path, clock: Clock, cycles: int = 48) -> Status:
    """Return the status of the schedule in `folder`, with its last `cycles` cycles; nothing is written.

    Raise `DamagedError` where the ledger itself is damaged, `BusyError` where it stays locked.
    """
    now, ledger_path = clock.now(), folder / LEDGER
    if not ledger_path.is_file():
        nothing = f"nothing has been published in {folder} yet: fieldcast cycle makes the first forecast"
        return Status(params.track.experiment, now, params.live.drift, late=[nothing])
    since = drift.first_init_time(now, params.live.drift)
    with Ledger(ledger_path, read_only=True) as ledger:
        clock_doubts = timekeeping.doubts(ledger, Look.of(clock))
        rows = _one_each(ledger.cycles(newest=2 * cycles))[-cycles:]
        day = [row for row in _one_each(ledger.cycles(since=now - DAY)) if row.init_time > now - DAY]
        newest = next(iter(ledger.cycles(states=VISIBLE, newest=1)), None)
        verified = ledger.verifications(since)
        issued = ledger.cycles(since, states=VISIBLE)
        unfinished = ledger.cycles(states=OPEN)
        pending = len(ledger.pending(most=10**6))
        notable = [it for it in ledger.events(LOOK_BACK) if it["event"] in NOTABLE]
    every = lateness.spacing(params, folder, newest, rows)
    return Status(
        experiment=params.track.experiment,
        now=now,
        drift=params.live.drift,
        every=every,
        rows=rows,
        counts=_counts(day),
        newest=newest,
        late=clock_doubts or lateness.late(params, now, every, rows, unfinished),
        faults=_faults(folder, newest),
        alarms=drift.alarms(verified, issued, params.live.drift),
        verified=verified,
        pending=pending,
        events=notable[-SHOWN_EVENTS:],
        refused=_refused(notable, now),
    )


def headline(status: Status) -> str:
    """Return the newest forecast and the last 24 hours in one line."""
    if status.newest is None:
        first = "no forecast yet"
    else:
        quality = "" if status.newest.quality == "good" else f" ({readable(status.newest.quality)})"
        first = (
            f"newest forecast {moment(status.newest.init_time, status.now)}, {age_text(status)} old, by "
            f"{readable(status.newest.model)}{quality}"
        )
    total = sum(status.counts.values())
    counts = ", ".join(f"{count} {state}" for state, count in status.counts.items())
    return f"{first}; {total} {'cycle' if total == 1 else 'cycles'} in 24 h" + (f": {counts}" if total else "")


def table(status: Status) -> Table:
    """Return the last cycles as a table for a terminal of 80 columns, the newest last; times are UTC."""
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    lines.add_column("init time", no_wrap=True)
    lines.add_column("state", no_wrap=True)
    lines.add_column("model", no_wrap=True)
    lines.add_column("quality, reason")  # the one that gives way
    lines.add_column("gaps", justify="right", no_wrap=True)
    lines.add_column("s", justify="right", no_wrap=True)
    for row in status.rows:
        lines.add_row(
            f"{row.init_time:%m-%d %H:%M}",
            Text(row.state, STYLES[row.state]),
            Text(readable(row.model)),
            Text(readable(row.quality).removeprefix("good") or row.reason, no_wrap=True, overflow="ellipsis"),
            str(row.n_input_missing or ""),
            f"{sum(row.timings.values()):.1f}" if row.timings else "",
        )
    return lines


def moment(when: datetime, now: datetime) -> str:
    """Return a time for people: without its date when that is today's."""
    return f"{when:%H:%M}" if when.date() == now.date() else f"{when:%Y-%m-%d %H:%M}"


def age_text(status: Status) -> str:
    """Return the age of the newest forecast for people."""
    minutes = round((status.age or timedelta()) / timedelta(minutes=1))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 2880 else f"{minutes // 1440} days"


def _day(verified: Verification) -> str:
    return f"{verified.init_time:%Y-%m-%d}"


def _one_each(rows: Sequence[Cycle]) -> list[Cycle]:
    """Return one row an init time: the one that readers see, else the newest revision."""
    shown: dict[datetime, Cycle] = {}
    for row in rows:
        earlier = shown.get(row.init_time)
        if earlier is None or earlier.state not in VISIBLE or row.state in VISIBLE:
            shown[row.init_time] = row
    return list(shown.values())


def _counts(rows: Sequence[Cycle]) -> dict[State, int]:
    counts = Counter(row.state for row in rows)
    return {state: counts[state] for state in (*COUNTED, *State) if state in COUNTED or counts[state]}


def _refused(events: Sequence[dict[str, Any]], now: datetime) -> list[str]:
    """Return what the feed had in the last 24 hours that was not taken, the newest last, each once."""
    lines = [event["detail"] for event in events if event["event"] == "refused" and event["at"] > iso(now - DAY)]
    return list(dict.fromkeys(lines))[-SHOWN_EVENTS:]


def _faults(folder: Path, newest: Cycle | None) -> list[str]:
    """Return a line for each error that readers of the newest forecast would get."""
    if newest is None:
        return []
    lines = []
    try:
        publish.check(path_of(folder, newest.init_time, newest.revision), newest.manifest_sha256)
    except (DamagedError, OSError) as error:
        lines.append(str(error))
    try:
        publish.read_catalogue(folder)
    except (DamagedError, OSError) as error:
        lines.append(str(error))
    except InputError:
        lines.append(f"{folder / CATALOGUE}: is missing: the next cycle writes it again")
    return lines


def _plain(value: Any) -> Any:
    """Return a value in the types of JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(it) for key, it in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(it) for it in value]
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, State) else value
