"""The work after a cycle: verification of what has been observed, drift, copies, retention, records for MLflow."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from fieldcast.pipeline.config import Drift
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import DamagedError
from fieldcast.pipeline.live.archive import publish, recovery
from fieldcast.pipeline.live.archive.exports import write_copies
from fieldcast.pipeline.live.archive.ledger import VISIBLE, Cycle, Ledger, State, Verification
from fieldcast.pipeline.live.archive.publish import COPIES, LEDGER, path_of
from fieldcast.pipeline.live.archive.records import scores_record
from fieldcast.pipeline.live.clock import Clock, iso, parse
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.monitoring import drift
from fieldcast.pipeline.live.monitoring.verification import sums_of

log = logging.getLogger(__name__)
ALARMS = "alarms"  # the fact that holds the current alarms
FORGOTTEN = "forgotten_at"  # the fact that holds when old rows were last removed
FORGET_EVERY = timedelta(days=1)


def verify_issued(context: LiveContext, ledger: Ledger, now: datetime) -> int:
    """Score every published forecast whose valid times have been observed, once each; return the number scored.

    Missing frames are waited for until `live.verify_after_hours` after the last valid time.
    """
    patience = timedelta(hours=context.params.live.verify_after_hours)
    count = 0
    for cycle in ledger.unverified():
        valid_times = context.schedule.valid_times(cycle.init_time)
        if valid_times[-1] > now:
            continue
        observed = context.observations.frames(valid_times)
        if len(observed) < len(valid_times) and now < valid_times[-1] + patience:
            continue
        try:
            sums = _sums(context, cycle, valid_times)
        except DamagedError as error:
            log.error("verification of %s: %s", iso(cycle.init_time), error)
            continue
        verified = Verification(cycle.init_time, cycle.revision, now, cycle.model, cycle.model_version, sums)
        with ledger.writing(fenced=True):
            ledger.add_verification(verified)
            ledger.enqueue(f"scores {iso(cycle.init_time)} {cycle.revision}", scores_record(cycle, verified))
        count += 1
    return count


def expire_overdue(context: LiveContext, ledger: Ledger, now: datetime) -> None:
    """Record as failed the cycles that are still due, past their deadline and older than `live.backfill_hours`."""
    oldest = now - timedelta(hours=context.params.live.backfill_hours)
    overdue = [row for row in ledger.cycles(until=oldest, states=[State.DUE]) if now >= (row.deadline_at or now)]
    if overdue:
        with ledger.writing(fenced=True):
            for cycle in overdue:
                failed = replace(cycle, state=State.FAILED, ended_at=now, reason=cycle.reason or "expired")
                ledger.put(failed, "failed", now)


def record_drift(context: LiveContext, ledger: Ledger, now: datetime) -> None:
    """Log and record the start and the end of alarms, not each cycle's change of the numbers in their text."""
    alarms = current_alarms(ledger, now, context.params.live.drift)
    before = ledger.fact(ALARMS) or ""
    text = "; ".join(alarms)
    if bool(text) != bool(before):
        if text:
            log.warning("drift: %s", text)
        with ledger.writing(fenced=True):
            ledger.note("drift" if text else "drift_over", now, text)
            ledger.set_fact(ALARMS, text)


def copy_newest(context: LiveContext, ledger: Ledger) -> None:
    """Write the newest forecast in the formats of `live.copies`."""
    if not context.params.live.copies:
        return
    for cycle in ledger.cycles(states=VISIBLE, newest=1):
        path = path_of(context.folder, cycle.init_time, cycle.revision)
        with store.open_forecasts(path) as forecast:
            write_copies(forecast, context.folder / COPIES, path.name.removesuffix(".zarr"), context.params.live.copies)


def apply_retention(context: LiveContext, ledger: Ledger, now: datetime) -> None:
    """Retire old forecasts, and remove the frames that no cycle or verification needs any more."""
    rules, schedule = context.params.live.retention, context.schedule
    recovery.retire(context.folder, ledger, rules, now)
    if rules.days:
        _forget(ledger, timedelta(days=max(rules.days, context.params.live.drift.days)), now)
    unverified = [cycle.init_time for cycle in ledger.unverified()]
    oldest = min([*unverified, now - timedelta(hours=rules.observations_hours)])
    context.observations.prune(oldest - schedule.history * schedule.step)


def _forget(ledger: Ledger, kept: timedelta, now: datetime) -> None:
    """Remove, once a day, what the ledger has of the time before `kept`, counted from the day before.

    A clock that is ahead for less than a day, by however much, removes nothing that its own time would not.
    """
    fact = ledger.fact(FORGOTTEN)
    last = parse(fact) if fact else None
    if last is not None and last <= now < last + FORGET_EVERY:
        return
    with ledger.writing(fenced=True):
        if last is not None and last < now:
            ledger.forget(last - kept)
        ledger.set_fact(FORGOTTEN, iso(now))


def current_alarms(ledger: Ledger, now: datetime, options: Drift) -> list[str]:
    """Return the signs of drift over the last `live.drift.days`."""
    since = drift.first_init_time(now, options)
    return drift.alarms(ledger.verifications(since), ledger.cycles(since, states=VISIBLE), options)


def sync(experiment: str, folder: Path, clock: Clock, root: Path = Path()) -> int:
    """Send the records that MLflow does not have yet, in ten seconds at most; return how many arrived."""
    from fieldcast.pipeline.live import mlflow_sync

    with Ledger(folder / LEDGER) as ledger:
        pending = ledger.pending()
        if not pending:
            return 0
        records = [mlflow_sync.Record(seq=seq, **(content | {"at": parse(content["at"])})) for seq, content in pending]
        sent = mlflow_sync.send_records(experiment, records, root)
        ledger.mark_sent(sent, clock.now())
    return len(sent)


def _sums(context: LiveContext, cycle: Cycle, valid_times: list[datetime]) -> dict[str, Any]:
    path = path_of(context.folder, cycle.init_time, cycle.revision)
    publish.check(path, cycle.manifest_sha256)
    with store.open_forecasts(path) as stored:
        forecast = stored.load()
    names = context.model.config.target_names
    observed = context.observations.read(valid_times, names)
    history = context.observations.read(context.schedule.history_times(cycle.init_time), names)
    return sums_of(forecast, observed, history, names, context.params.verify.thresholds)
