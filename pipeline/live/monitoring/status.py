"""How the schedule is doing: for people (a table, a page), monitors (an exit code, metrics) and programs (JSON).

Nothing here writes to the ledger, asks the tracker or loads a model.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from prometheus_client import CollectorRegistry, Gauge, write_to_textfile
from rich import box
from rich.table import Table
from rich.text import Text

from fieldcast.pipeline.config import Drift, Params
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.atomic import replace_durable
from fieldcast.pipeline.datasets.schema import field_names, lead_minutes
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive.ledger import OPEN, VISIBLE, Cycle, Ledger, State, Verification
from fieldcast.pipeline.live.archive.publish import CATALOGUE, LEDGER, path_of
from fieldcast.pipeline.live.clock import Clock, iso
from fieldcast.pipeline.live.monitoring import lateness, verification
from fieldcast.pipeline.live.monitoring.verification import Scores, scores_of
from fieldcast.pipeline.live.outcomes import ExitCode

DAY = timedelta(days=1)
LOOK_BACK = 1000  # events, of which the notable ones are shown
NOTABLE = (
    "failed",
    "skipped",
    "recovered",
    "quarantined",
    "refused",
    "stale_input",
    "drift",
    "drift_over",
    "clock_jump",
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
MARKS = {  # in the strip of cycles, so that it can be read without colours
    State.PUBLISHED: "",
    State.DEGRADED: "~",
    State.SKIPPED: "–",
    State.FAILED: "×",
    State.DUE: "…",
    State.RUNNING: "…",
    State.SUPERSEDED: "",
    State.RETIRED: "",
}
VERDICTS = {
    ExitCode.DONE: "On time",
    ExitCode.ALARM: "Alarm",
    ExitCode.DAMAGED: "Damaged",
    ExitCode.LATE: "Late",
}


@dataclass(frozen=True)
class Status:
    """The schedule at one moment; `late`, `faults` and `alarms` hold a line for each thing that is wrong."""

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
        days = sorted({f"{it.init_time:%Y-%m-%d}" for it in self.verified})
        return {day: scores_of([it for it in self.verified if f"{it.init_time:%Y-%m-%d}" == day]) for day in days}

    @property
    def model_share(self) -> float | None:
        """Return the share of the model in the seconds of the cycles that ran."""
        ran = [row.timings for row in self.rows if row.timings.get("model")]
        return sum(it["model"] for it in ran) / sum(sum(it.values()) for it in ran) if ran else None

    def exit_code(self) -> ExitCode:
        """Return what a monitor shall know: a late schedule comes before damage, and damage before an alarm."""
        if self.late:
            return ExitCode.LATE
        if self.faults:
            return ExitCode.DAMAGED
        return ExitCode.ALARM if self.alarms else ExitCode.DONE

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON has it: times as text, seconds as numbers, what is undefined as null."""
        found = {
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
            "scores": [asdict(it) | it.overall for it in self.scores],
            "scores_by_day": {
                day: [{"field": it.field, "cycles": it.cycles, **it.overall} for it in scores]
                for day, scores in self.days.items()
            },
            "tracker_pending": self.pending,
            "events": self.events,
        }
        plain: dict[str, Any] = _plain(found)
        return plain


def look(params: Params, folder: Path, clock: Clock, cycles: int = 48) -> Status:
    """Return how the schedule of the live folder is doing, with its last `cycles` cycles; nothing is written.

    Raise `DamagedError` where the ledger itself is damaged, `BusyError` where it stays locked.
    """
    now, ledger_path = clock.now(), folder / LEDGER
    if not ledger_path.is_file():
        nothing = f"nothing has been published in {folder} yet: fieldcast cycle makes the first forecast"
        return Status(params.track.experiment, now, params.live.drift, late=[nothing])
    since = verification.window(now, params.live.drift)
    with Ledger(ledger_path, read_only=True) as ledger:
        last_event_at = ledger.last_event_at()
        rows = _one_each(ledger.cycles(newest=2 * cycles))[-cycles:]
        day = [it for it in _one_each(ledger.cycles(since=now - DAY)) if it.init_time > now - DAY]
        newest = next(iter(ledger.cycles(states=VISIBLE, newest=1)), None)
        verified = ledger.verifications(since)
        issued = ledger.cycles(since, states=VISIBLE)
        unfinished = ledger.cycles(states=OPEN)
        pending = len(ledger.pending(most=10**6))
        events = [it for it in ledger.events(LOOK_BACK) if it["event"] in NOTABLE][-SHOWN_EVENTS:]
    every = lateness.spacing(params, folder, newest, rows)
    clock_is_back = lateness.clock_is_back(now, last_event_at, ledger_path)
    return Status(
        experiment=params.track.experiment,
        now=now,
        drift=params.live.drift,
        every=every,
        rows=rows,
        counts=_counts(day),
        newest=newest,
        late=clock_is_back or lateness.late(params, now, every, rows, unfinished),
        faults=_faults(folder, newest),
        alarms=verification.alarms(verified, issued, params.live.drift),
        verified=verified,
        pending=pending,
        events=events,
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
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    made.add_column("init time", no_wrap=True)
    made.add_column("state", no_wrap=True)
    made.add_column("model", no_wrap=True)
    made.add_column("quality, reason")  # the one that gives way
    made.add_column("gaps", justify="right", no_wrap=True)
    made.add_column("s", justify="right", no_wrap=True)
    for row in status.rows:
        made.add_row(
            f"{row.init_time:%m-%d %H:%M}",
            Text(row.state, STYLES[row.state]),
            readable(row.model),
            Text(readable(row.quality).removeprefix("good") or row.reason, no_wrap=True, overflow="ellipsis"),
            str(row.n_input_missing or ""),
            f"{sum(row.timings.values()):.1f}" if row.timings else "",
        )
    return made


def write_metrics(status: Status, path: Path) -> None:
    """Write the status as Prometheus text, in one step, for the node exporter's textfile collector."""
    registry = CollectorRegistry()

    def gauge(name: str, words: str, values: Mapping[str, float], label: str = "") -> None:
        metric = Gauge(f"fieldcast_{name}", words, [label] if label else [], registry=registry)
        for key, value in values.items():
            (metric.labels(key) if label else metric).set(value)

    gauge("last_look_timestamp_seconds", "When this was found out", {"": status.now.timestamp()})
    gauge("late", "1 when the schedule is late: fieldcast status says why", {"": bool(status.late)})
    gauge("damaged", "1 when readers get an error: fieldcast status says why", {"": bool(status.faults)})
    gauge("alarm", "1 when forecasts or inputs have become worse", {"": bool(status.alarms)})
    gauge("tracker_pending", "Records that the tracker does not have yet", {"": status.pending})
    states = {str(state): float(status.counts.get(state, 0)) for state in State}
    gauge("cycles", "Cycles with init times in the last 24 hours, by state", states, "state")
    if status.newest and status.age is not None:
        start = status.newest.init_time.timestamp()
        gauge("newest_forecast_init_timestamp_seconds", "Init time of the newest forecast", {"": start})
        gauge(
            "newest_forecast_age_seconds",
            "Time since the init time of the newest forecast, at the last look",
            {"": status.age.total_seconds()},
        )
        gauge("cycle_seconds", "What the newest forecast took, by part", status.newest.timings, "part")
    ratios = {it.field: it.overall["rmse_ratio"] for it in status.scores}
    known = {name: value for name, value in ratios.items() if math.isfinite(value)}
    gauge("rmse_ratio", "RMSE over that of persistence, live.drift.days, all lead times", known, "field")
    write_to_textfile(str(path), registry)


def write_page(status: Status, folder: Path, path: Path) -> None:
    """Write the status as one HTML file that needs no network, no script and no second file, in one step."""
    from fieldcast.pipeline.datasets.labels import readable_units
    from fieldcast.pipeline.live.monitoring import charts as pictures

    environment = Environment(
        loader=PackageLoader("fieldcast.pipeline.live.monitoring", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    animation, error = _newest_animation(status, folder)
    ratio = pictures.ratio_chart(status.verified, status.drift, status.now)
    charts = [*(pictures.error_chart(it) for it in status.scores), ratio]
    page = environment.get_template("status.html.j2").render(
        status=status,
        verdict=VERDICTS[status.exit_code()],
        headline=headline(status),
        animation=animation,
        error=error,
        charts=[it for it in charts if it is not None],
        age=age_text(status),
        readable=readable,
        readable_units=readable_units,
        remark=remark,
        marks=MARKS,
    )
    replace_durable(path, page.encode())


def readable(name: str) -> str:
    """Return the name of a model, state or event as a person writes it."""
    return name.replace("_", " ")


def remark(row: Cycle) -> str:
    """Return what is to be said of a cycle beside its state: quality and reason."""
    quality = "" if row.quality == "good" else readable(row.quality)
    return ": ".join(it for it in (quality, row.reason) if it)


def moment(when: datetime, now: datetime) -> str:
    """Return a time for people: without its date when that is today's."""
    return f"{when:%H:%M}" if when.date() == now.date() else f"{when:%Y-%m-%d %H:%M}"


def age_text(status: Status) -> str:
    """Return the age of the newest forecast for people."""
    minutes = round((status.age or timedelta()) / timedelta(minutes=1))
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes < 2880 else f"{minutes // 1440} days"


def _newest_animation(status: Status, folder: Path) -> tuple[dict[str, str] | None, str]:
    """Return the newest forecast as an image, and why it cannot be shown."""
    if status.newest is None:
        return None, ""
    path = path_of(folder, status.newest.init_time, status.newest.revision)
    try:
        archive.check(path, status.newest.manifest_sha256)
        return _animated(path, status.newest.manifest_sha256), ""
    except (DamagedError, OSError) as error:
        return None, str(error)


@lru_cache(maxsize=1)
def _animated(path: Path, _manifest_sha256: str) -> dict[str, str]:  # drawn once, however often the page is written
    from fieldcast.pipeline.live.monitoring import charts as pictures

    with store.open_forecasts(path) as forecast:
        frames = pictures.animation(forecast)
        name, last = readable(field_names(forecast)[0]), lead_minutes(forecast)[-1]
    ahead = f"{last} min" if last < 180 else f"{last / 60:g} h"
    moving, still = pictures.data_address(frames), pictures.data_address(frames[-1:])
    return {"moving": moving, "still": still, "field": name, "last": ahead}


def _one_each(rows: Sequence[Cycle]) -> list[Cycle]:
    """Return one row an init time: the one that readers see, else the newest revision."""
    found: dict[datetime, Cycle] = {}
    for row in rows:
        known = found.get(row.init_time)
        if known is None or known.state not in VISIBLE or row.state in VISIBLE:
            found[row.init_time] = row
    return list(found.values())


def _counts(rows: Sequence[Cycle]) -> dict[State, int]:
    found = Counter(row.state for row in rows)
    return {state: found[state] for state in (*COUNTED, *State) if state in COUNTED or found[state]}


def _faults(folder: Path, newest: Cycle | None) -> list[str]:
    """Return why readers would get an error for the newest forecast."""
    if newest is None:
        return []
    found = []
    try:
        archive.check(path_of(folder, newest.init_time, newest.revision), newest.manifest_sha256)
    except (DamagedError, OSError) as error:
        found.append(str(error))
    try:
        archive.read_catalogue(folder)
    except (DamagedError, OSError) as error:
        found.append(str(error))
    except InputError:
        found.append(f"{folder / CATALOGUE}: has gone: the next cycle writes it anew")
    return found


def _plain(value: Any) -> Any:
    """Return a value made of what JSON has."""
    if isinstance(value, Mapping):
        return {str(key): _plain(it) for key, it in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(it) for it in value]
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value) if isinstance(value, State) else value
