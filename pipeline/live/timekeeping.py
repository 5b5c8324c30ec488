"""Looks at the clock: jumps are told from time that has passed, and what a wrong future has decided is taken back.

A step back, or one ahead by more than a restart catches up with, is noted as `clock_jump`, and that look decides
nothing; the next one believes the clock, since machines stand still for days and clocks are corrected too. So nothing
that was decided by a clock that was ahead lasts: when it is back, those init times are due again.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from fieldcast.pipeline.errors import BusyError
from fieldcast.pipeline.live.archive.ledger import OPEN, VISIBLE, Cycle, Ledger, State
from fieldcast.pipeline.live.clock import ALLOWED_BACK, iso, parse

LOOK = "look"  # the fact that holds the last look at the clock
SAME = timedelta(minutes=1)  # between the wall clock and the seconds that have passed
REOPENED = "decided by a clock that was ahead"


@dataclass(frozen=True)
class Look:
    """The wall clock and the machine's seconds at a look."""

    at: datetime
    seconds: float

    def text(self) -> str:
        """Return the look as a fact of the ledger."""
        return json.dumps({"at": iso(self.at), "seconds": round(self.seconds, 3)})


def last_look(ledger: Ledger) -> Look | None:
    """Return the last look, in a ledger without one its last event; None in an empty ledger."""
    if fact := ledger.fact(LOOK):
        content = json.loads(fact)
        return Look(parse(content["at"]), content["seconds"])
    last_event = ledger.last_event_at()
    return None if last_event is None else Look(last_event, float("nan"))


def jump(last: Look | None, look: Look, catch_up: timedelta) -> timedelta | None:
    """Return by how much the clock has jumped since the last look, None where it has not.

    A step ahead within `catch_up` costs nothing and counts as time that has passed, as a longer one does when the
    machine's seconds agree.
    """
    if last is None:
        return None
    step = look.at - last.at
    if -ALLOWED_BACK <= step <= catch_up:
        return None
    if abs(step.total_seconds() - (look.seconds - last.seconds)) < SAME.total_seconds():
        return None
    return step


def require_steady(ledger: Ledger, look: Look, catch_up: timedelta, *, note: bool) -> None:
    """Raise `BusyError` where the clock has jumped since the last look; with `note` as an event, and believed next."""
    last = last_look(ledger)
    step = jump(last, look, catch_up)
    if step is None or last is None:
        return
    word = "earlier" if step < timedelta() else "later"
    line = f"the clock shows {iso(look.at)}, {abs(step)} {word} than at the last look, {iso(last.at)}"
    if note:
        with ledger.writing(fenced=True):
            ledger.note("clock_jump", look.at, line)
            ledger.set_fact(LOOK, look.text())
    raise BusyError(f"{line}: nothing is decided at this look, and the next one believes the clock; is it right?")


def reopen(ledger: Ledger, now: datetime, renewed: Cycle) -> Cycle | None:
    """Return the row under which `renewed`, decided later than `now`, is due again; None where it stays as it is."""
    newest = ledger.cycle(renewed.init_time)
    if newest is None or newest.revision != renewed.revision:
        return None
    due = replace(Cycle(renewed.init_time, renewed.revision), due_at=renewed.due_at, deadline_at=renewed.deadline_at)
    if renewed.state in (State.SKIPPED, State.FAILED) or renewed.state in OPEN:
        return replace(due, reason=REOPENED)
    if renewed.state is State.DEGRADED:  # readers keep it until the better one is there
        return replace(due, revision=renewed.revision + 1, reason=REOPENED)
    if renewed.state is State.RETIRED and renewed.retired_at and renewed.retired_at > now:
        return replace(renewed, state=VISIBLE[renewed.quality != "good"], retired_at=None)
    return None


def take_back(ledger: Ledger, now: datetime) -> None:
    """Make due again what was decided later than `now`, and forget verifications of that time; inside `writing`."""
    for row in ledger.decided_after(now + ALLOWED_BACK):
        if row.state in OPEN and row.init_time > now:
            continue  # its time comes
        if (due := reopen(ledger, now, row)) is not None:
            ledger.put(due, "reopened", now, REOPENED)
    ledger.forget_verifications(now + ALLOWED_BACK)
