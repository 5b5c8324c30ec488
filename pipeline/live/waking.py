"""One waking of the schedule: it runs what is due, and ends before heavy imports where nothing can be.

Cron wakes it each minute and frames come every few minutes: most wakings find nothing, and the ledger tells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fieldcast.pipeline.errors import UserError
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger
from fieldcast.pipeline.live.clock import Clock
from fieldcast.pipeline.live.monitoring.metrics import METRICS, refresh
from fieldcast.pipeline.live.monitoring.notices import is_due
from fieldcast.pipeline.live.outcomes import Outcome, Result

if TYPE_CHECKING:
    from fieldcast.pipeline.config import Params

WAIT_SECONDS = 10.0  # between two looks for frames


def key_of(path: Path) -> str:
    """Return the key of a file of parameters, by which a rest is known to be theirs; none where there is no file."""
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def wake(
    params: Callable[[], Params], folder: Path, clock: Clock, key: str, *, resident: bool = False
) -> list[Outcome]:
    """Run what is due and return the outcomes; `params` are asked for where something may be.

    A `resident` process goes on while people are told what has changed.
    """
    if _is_resting(folder, clock, key) and not is_due(folder, clock.now()):
        refresh(folder / METRICS, clock.now())
        return []
    from fieldcast.pipeline.live.pending import run_pending

    return run_pending(params(), folder, clock, key=key, resident=resident)


def until_complete(look: Callable[[], list[Outcome]], clock: Clock) -> list[Outcome]:
    """Repeat a look until none of the cycles of the first waits for frames any more.

    A deadline ends the wait for each. The outcomes are those of the last look and of all that ended before it.
    """
    outcomes = {outcome.init_time: outcome for outcome in look()}
    first = set(outcomes)
    while any(outcomes[init_time].result is Result.NO_DATA_YET for init_time in first):
        clock.sleep(WAIT_SECONDS)
        outcomes |= {outcome.init_time: outcome for outcome in look()}
    return [outcomes[init_time] for init_time in sorted(outcomes)]


def _is_resting(folder: Path, clock: Clock, key: str) -> bool:
    """Return whether the ledger says that nothing can be due; one that does not answer or is damaged says nothing."""
    if not key or not (folder / LEDGER).is_file():
        return False
    try:
        with Ledger(folder / LEDGER, read_only=True) as ledger:
            return ledger.is_resting(key, clock.now())
    except UserError:
        return False  # a look meets the same error, and tells it
