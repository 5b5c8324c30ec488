"""Signs in the ledger that forecasts do not come when they should."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise, takewhile
from pathlib import Path

from fieldcast.pipeline.config import Params
from fieldcast.pipeline.datasets.manifest import MANIFEST
from fieldcast.pipeline.live.archive.ledger import OPEN, Cycle, State
from fieldcast.pipeline.live.archive.publish import path_of
from fieldcast.pipeline.live.clock import iso

DRY = 3  # cycles in a row without a forecast that make the schedule late


def spacing(params: Params, folder: Path, newest: Cycle | None, rows: Sequence[Cycle]) -> timedelta | None:
    """Return the time between init times: as set, else the newest forecast's step, else the rows' least distance."""
    if params.live.every_minutes:
        return timedelta(minutes=params.live.every_minutes)
    if newest is not None:
        try:
            manifest = json.loads((path_of(folder, newest.init_time, newest.revision) / MANIFEST).read_bytes())
            return timedelta(minutes=manifest["step_minutes"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # a damaged forecast is reported elsewhere
    return min((b.init_time - a.init_time for a, b in pairwise(rows)), default=None)


def late(
    params: Params, now: datetime, every: timedelta | None, rows: Sequence[Cycle], unfinished: Sequence[Cycle]
) -> list[str]:
    """Return a line for each sign of forecasts that are overdue; one interval between init times is allowed for."""
    if not rows:
        return ["no cycle has been planned yet: fieldcast cycle makes the first forecast"]
    lines, last = [], rows[-1]
    wait = timedelta(minutes=params.live.late_data.deadline_minutes)
    if every and now > (until := last.init_time + 2 * every + wait):
        lines.append(
            f"no cycle after {iso(last.init_time)}, expected the next one by {iso(until)}: does fieldcast serve or the "
            "timer run?"
        )
    if last.state is State.FAILED:
        lines.append(failure(last))
    stuck = [row for row in unfinished if row.deadline_at and now > row.deadline_at + (every or timedelta())]
    if stuck:
        first = stuck[0]
        words = ": ".join(it for it in (first.state, first.reason) if it)
        more = f" and {len(stuck) - 1} more" if len(stuck) > 1 else ""
        lines.append(f"cycle {iso(first.init_time)}{more} unfinished after the deadline ({words})")
    return lines + _dry(rows)


def failure(row: Cycle) -> str:
    """Return the line of a cycle that has failed."""
    return f"cycle {iso(row.init_time)} failed: {row.reason}"


def _dry(rows: Sequence[Cycle]) -> list[str]:
    """Return a line where the last few cycles have ended without a forecast."""
    ended = [row for row in reversed(rows) if row.state not in OPEN]
    dry = list(takewhile(lambda row: row.state in (State.SKIPPED, State.FAILED), ended))
    if len(dry) < DRY:
        return []
    reason = (
        f": {dry[0].reason}" if dry[0].reason and dry[0].state is State.SKIPPED else ""
    )  # a failure has a line of its own
    return [f"no forecast from the last {len(dry)} cycles{reason}"]
