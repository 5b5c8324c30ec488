"""The clock, compared with its witnesses: the machine's own seconds, and the times of the frames that the feed has.

A look at a clock that they contradict decides nothing; what a clock decided that is set back later is taken back
(decision 26).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from fieldcast.pipeline.errors import BusyError
from fieldcast.pipeline.live.archive.ledger import OPEN, Cycle, Ledger, State
from fieldcast.pipeline.live.clock import ALLOWED_BACK, Clock, iso, parse

BELIEVED, DOUBTED = "clock", "clock_doubted"  # the facts that hold the last look of either kind
AHEAD = timedelta(minutes=30)  # of its witnesses: so much is no jump
STEADY = timedelta(minutes=30)  # of the machine's seconds, after which a clock without another witness is believed
NOTED = timedelta(minutes=1)  # steps back that are shorter are in normal use
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Look:
    """The time that a clock showed, and the machine's own seconds."""

    at: datetime
    seconds: float
    boot: str  # names the start of the machine, from which the seconds count

    @classmethod
    def of(cls, clock: Clock) -> Look:
        """Return a look at a clock."""
        return cls(clock.now(), clock.monotonic(), BOOT_ID.read_text().strip() if BOOT_ID.is_file() else "")

    def since(self, earlier: Look) -> timedelta | None:
        """Return the machine's seconds since an earlier look, None where it has started anew or is another one."""
        passed = self.seconds - earlier.seconds
        return timedelta(seconds=passed) if self.boot == earlier.boot and passed >= 0 else None

    def goes_on(self, last: Look | None) -> bool:
        """Return whether the clock has moved since the last look as the machine's seconds have, or about so."""
        if last is None:
            return True
        return -ALLOWED_BACK <= self.at - last.at <= (self.since(last) or timedelta()) + AHEAD


@dataclass(frozen=True)
class FeedTimes:
    """Times of a feed's newest frame; None where it has no frame, or is a simulation, which follows any clock."""

    before: datetime | None  # at the last look that was believed
    newest: datetime | None
    patience: timedelta  # an older newest frame is of use to no cycle

    def confirms(self, look: Look, last: Look) -> bool:
        """Return whether the newest frame agrees with a clock that has jumped since the last look.

        After a step back, no frame may be of its future. After one ahead, the feed may be no further behind than it was
        before; where the machine's seconds say nothing, as after its start, no further than cycles can use.
        """
        if self.newest is None:
            return look.at > last.at and look.since(last) is None
        behind = look.at - self.newest
        if look.at < last.at:
            return behind >= -NOTED
        usual = AHEAD + (last.at - self.before if self.before else timedelta())
        return behind <= (max(usual, self.patience) if look.since(last) is None else usual)


def last_believed(ledger: Ledger) -> Look | None:
    """Return the last look that was believed, in an older ledger its last event; None in an empty one."""
    if fact := ledger.fact(BELIEVED):
        return _look(fact)
    last_event = ledger.last_event_at()
    return None if last_event is None else Look(last_event, 0.0, "")


def is_steady(ledger: Ledger, look: Look) -> bool:
    """Return whether a doubted clock has gone as the machine's seconds have, for half an hour."""
    first = _first_doubted(ledger)
    passed = look.since(first) if first else None
    return passed is not None and passed >= STEADY and _is_as_before(first, look)


def reject(ledger: Ledger, last: Look, look: Look, newest: datetime | None, *, note: bool) -> None:
    """Raise `BusyError` about a clock that is not believed; `note`: the jump is an event of the ledger, once."""
    frame = f", and the newest frame is of {iso(newest)}" if newest else ""
    line = f"{contradiction(last, look)}{frame}"
    if note and not _is_as_before(_first_doubted(ledger), look):
        with ledger.writing(fenced=True):
            ledger.note("clock_jump", last.at, line)  # the time of an event is one that was believed
            ledger.set_fact(DOUBTED, _text(look))
    raise BusyError(f"{line}: nothing is decided until they agree; correct the clock, or see whether the feed delivers")


def accept(ledger: Ledger, last: Look | None, look: Look) -> None:
    """Remember a look as believed, and take back what a clock that was ahead had decided; inside `writing`."""
    if last and look.at < last.at - NOTED:
        ledger.note("clock_jump", look.at, f"the clock was set back from {iso(last.at)} to {iso(look.at)}")
        _take_back(ledger, look.at)
    ledger.set_fact(BELIEVED, _text(look))
    if ledger.fact(DOUBTED):
        ledger.set_fact(DOUBTED, "")


def doubts(ledger: Ledger, look: Look) -> list[str]:
    """Return a line while cycles do not believe the clock."""
    last = last_believed(ledger)
    if last is None or look.goes_on(last) or not (look.at < last.at or ledger.fact(DOUBTED)):
        return []
    return [f"{contradiction(last, look)}: no cycle runs until they agree"]


def contradiction(last: Look, look: Look) -> str:
    """Return by how much the clock has jumped, in words."""
    step = look.at - last.at
    words = "earlier than" if step < timedelta() else "after"
    return (
        f"the clock shows {iso(look.at)}, {abs(step)} {words} the last cycle's look at it, which the machine's seconds "
        "do not confirm"
    )


def _take_back(ledger: Ledger, now: datetime) -> None:
    """Undo what was decided later than `now`, published forecasts apart.

    Rows of later init times are removed, to come when their time does; others that ended without a forecast are due
    again; verifications are made again.
    """
    ended = (State.SKIPPED, State.FAILED)
    if early := [row for row in ledger.cycles(now, states=(*OPEN, *ended)) if row.init_time > now and not row.revision]:
        ledger.remove_cycles([row.init_time for row in early])
        span = f"{len(early)} init times from {iso(early[0].init_time)} to {iso(early[-1].init_time)}"
        ledger.note("reopened", now, f"{span}, planned by a clock that was ahead")
    for row in ledger.ended_after(now):
        if row.state in ended and not row.revision:
            reason = f"{row.state} by a clock that was ahead"
            due = Cycle(row.init_time, due_at=row.due_at, deadline_at=row.deadline_at, reason=reason)
            ledger.put(due, "reopened", now)
    ledger.forget_verifications(now)


def _first_doubted(ledger: Ledger) -> Look | None:
    """Return the first look at which the clock was as it is now and not believed."""
    return _look(fact) if (fact := ledger.fact(DOUBTED)) else None


def _is_as_before(first: Look | None, look: Look) -> bool:
    """Return whether a doubted clock has not been set again since the first look at it."""
    passed = look.since(first) if first else None
    return first is not None and passed is not None and abs(look.at - first.at - passed) < NOTED


def _text(look: Look) -> str:
    return json.dumps(asdict(replace(look, seconds=round(look.seconds, 3))) | {"at": iso(look.at)})


def _look(text: str) -> Look:
    content = json.loads(text)
    return Look(**(content | {"at": parse(content["at"])}))
