"""The work after a cycle: verification of what has been observed, drift, copies, retention, records for MLflow."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from fieldcast.pipeline.config import Drift
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import DamagedError, InputError, redacted
from fieldcast.pipeline.live.archive import publish, recovery
from fieldcast.pipeline.live.archive.exports import has_copy, write_copies
from fieldcast.pipeline.live.archive.ledger import LEDGER, OPEN, VISIBLE, Cycle, Ledger, State, Verification
from fieldcast.pipeline.live.archive.products import PRODUCTS, has_products
from fieldcast.pipeline.live.archive.publish import COPIES, path_of
from fieldcast.pipeline.live.archive.records import scores_record
from fieldcast.pipeline.live.clock import Clock, iso, parse
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.monitoring import drift
from fieldcast.pipeline.live.monitoring.verification import sums_of
from fieldcast.pipeline.live.outcomes import ExitCode, Outcome, code_of
from fieldcast.pipeline.live.places.issue import PLACES, has_places, open_places, write_places
from fieldcast.pipeline.live.places.scores import OF_PLACES, place_sums
from fieldcast.pipeline.live.places.stations import read_stations

log = logging.getLogger(__name__)
ALARMS = "alarms"  # the fact that holds the current alarms
COPY_FAILED = "copy_failed"  # the fact that holds why copies failed at the last look
COPIED_LATER = timedelta(hours=6)  # copies that failed or were removed are made up for
FORGOTTEN = "forgotten_at"  # the fact that holds when old rows were last removed
FORGET_EVERY = timedelta(days=1)
LONGEST_REST = timedelta(minutes=30)  # late frames, a tracker that was down and the clock are looked at so often


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
        except (DamagedError, InputError) as error:  # of the forecast, or of live.stations
            log.error("verification of %s: %s", iso(cycle.init_time), error)
            continue
        verified = Verification(cycle.init_time, cycle.revision, now, cycle.model, cycle.model_version, sums)
        with ledger.writing(fenced=True):
            ledger.add_verification(verified)
            ledger.enqueue(f"scores {iso(cycle.init_time)} {cycle.revision}", scores_record(cycle, verified))
        count += 1
    if count:
        waiting = ledger.unverified()
        with ledger.writing(fenced=True):
            ledger.all_verified_before(waiting[0].init_time if waiting else verified.init_time)
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


def copy_issued(context: LiveContext, ledger: Ledger, outcomes: Sequence[Outcome], now: datetime) -> None:
    """Write the forecasts of this run, and of the last hours where one is missing, in the formats of `live.copies`.

    A copy that is there is left alone. One that fails ends nothing else; it is noted, and tried again at the next look.
    """
    kinds = [*context.params.live.copies, *([PLACES] if context.places else [])]
    if not kinds:
        return
    rows = {(row.init_time, row.revision): row for row in ledger.cycles(now - COPIED_LATER, states=VISIBLE)}
    for outcome in outcomes:  # of any time
        issued = ledger.cycles(outcome.init_time, outcome.init_time, VISIBLE) if outcome.path else []
        rows |= {(row.init_time, row.revision): row for row in issued}
    newest_first = [rows[name] for name in sorted(rows, reverse=True)]
    failures = [line for kind in kinds for line in _copy_missing(context, newest_first, kind)]
    _note_failed_copies(ledger, failures, now)


def _copy_missing(context: LiveContext, rows: Sequence[Cycle], kind: str) -> list[str]:
    """Write the copies of one kind that are missing; return why some failed, as far as others would not as well."""
    failures, folder = [], context.folder
    for row in rows:
        path = path_of(folder, row.init_time, row.revision)
        if has_copy(folder / COPIES, path.stem, kind) or (kind == PLACES and not has_places(path)):
            continue
        try:
            publish.check(path, row.manifest_sha256)
            if kind == PLACES:
                write_places(path, folder / COPIES)
                continue
            products = store.open_whole(path / PRODUCTS) if has_products(path) else None
            with store.open_forecasts(path) as forecast:
                write_copies(forecast, folder / COPIES, path.stem, [kind], products, context.params.verify)
        except Exception as error:  # of any library: scores, metrics and page do not wait for copies
            failures.append(redacted(f"{kind} of {iso(row.init_time)}: {' '.join(str(error).split())}"))
            log.error("copy_failed: %s", failures[-1], exc_info=code_of(error) is ExitCode.BUG)
            if not isinstance(error, DamagedError):  # of the disk, the grid or a package
                break
    return failures


def _note_failed_copies(ledger: Ledger, failures: Sequence[str], now: datetime) -> None:
    """Note that copies fail, and that they do no more, not each look's list of them."""
    text = "; ".join(failures)
    if bool(text) != bool(ledger.fact(COPY_FAILED)):
        with ledger.writing(fenced=True):
            ledger.note("copy_failed" if text else "copies_complete", now, text)
            ledger.set_fact(COPY_FAILED, text)


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


def rest(context: LiveContext, ledger: Ledger, now: datetime) -> None:
    """Remember that nothing comes due before the next frame, where no cycle is open and nothing failed."""
    if context.key and ledger.is_orderly and not ledger.cycles(states=OPEN):
        until = min(context.schedule.next_frame(now), now + LONGEST_REST)
        with ledger.writing(fenced=True):
            ledger.rest(context.key, now, until)


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
    products = store.open_whole(path / PRODUCTS).load() if has_products(path) else None
    names = context.model.config.target_names
    observed = context.observations.read(valid_times, names)
    history = context.observations.read(context.schedule.history_times(cycle.init_time), names)
    sums = sums_of(forecast, observed, history, names, context.params.verify.thresholds, products)
    if context.places is not None and has_places(path):
        of_places = place_sums(open_places(path), observed, context.places, _stations(context))
        sums = {name: of_field | {OF_PLACES: of_places[name]} for name, of_field in sums.items()}
    return sums


def _stations(context: LiveContext) -> pd.DataFrame | None:
    path = context.params.live.stations
    return None if path is None else read_stations(context.root / path, context.model.config.target_names)
