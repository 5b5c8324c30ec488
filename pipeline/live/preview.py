"""What a cycle would do at this moment, found out without writing anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from fieldcast.pipeline.live.archive.ledger import OPEN, Cycle, Ledger
from fieldcast.pipeline.live.archive.publish import LEDGER
from fieldcast.pipeline.live.clock import parse
from fieldcast.pipeline.live.context import PLANNED, Station
from fieldcast.pipeline.live.cycle import GOOD, outcome_of, policy
from fieldcast.pipeline.live.outcomes import Outcome, Result


def preview(station: Station, init_times: Sequence[datetime] | None = None) -> list[Outcome]:
    """Return what `run` would do at this moment, writing nothing; frames that would be brought in count as there."""
    now = station.clock.now()
    previews = []
    for init_time in _due(station, now) if init_times is None else init_times:
        station.axis.require(init_time)
        times = station.axis.history_of(init_time)
        there = {*station.observations.peek(times[0], init_time), *station.observations.frames(times)}
        missing = [it for it in times if it not in there]
        row = _recorded(station, init_time) or station.due(init_time)
        result, reason = _expected(station, row, times, missing, now)
        previews.append(
            outcome_of(station, replace(row, model=station.chosen.description.model), reason, result, missing)
        )
    return previews


def _due(station: Station, now: datetime) -> list[datetime]:
    """Return the init times that `run` would deal with: those of the last plan that are open, and those since."""
    path = station.folder / LEDGER
    if not path.is_file():
        return [station.axis.floor(now)]
    with Ledger(path, read_only=True) as ledger:
        last = ledger.fact(PLANNED)
        due = [row.init_time for row in ledger.cycles(until=now, states=OPEN)]
    new = station.axis.after(parse(last), now) if last else [station.axis.floor(now)]
    oldest = now - timedelta(hours=station.params.live.backfill_hours)
    return sorted({*due, *(it for it in new if it >= oldest)})


def _recorded(station: Station, init_time: datetime) -> Cycle | None:
    path = station.folder / LEDGER
    if not path.is_file():
        return None
    with Ledger(path, read_only=True) as ledger:
        return ledger.cycle(init_time)


def _expected(
    station: Station, row: Cycle, times: list[datetime], missing: list[datetime], now: datetime
) -> tuple[Result, str]:
    reason = f"{len(missing)} of {len(times)} frames of its history are missing" if missing else ""
    if row.state not in OPEN:
        return Result.ALREADY_DONE, str(row.state)
    if missing and row.deadline_at and now < row.deadline_at:
        return Result.NO_DATA_YET, reason
    quality, model = policy(station, times, [it for it in times if it not in missing])
    if not quality:
        return Result.SKIPPED, reason
    return (Result.DONE if quality == GOOD else Result.DEGRADED), reason and f"{reason}: {quality} by {model}"
