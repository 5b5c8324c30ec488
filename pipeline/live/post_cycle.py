"""What follows a cycle: verification of what has come true, drift, copies, retention, and news for the tracker."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import xarray as xr

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import DamagedError
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive import recovery
from fieldcast.pipeline.live.archive.exports import write_copies
from fieldcast.pipeline.live.archive.ledger import VISIBLE, Cycle, Ledger, State, Verification
from fieldcast.pipeline.live.archive.publish import COPIES, LEDGER, path_of
from fieldcast.pipeline.live.archive.records import scores_record
from fieldcast.pipeline.live.clock import Clock, iso, parse
from fieldcast.pipeline.live.context import Station
from fieldcast.pipeline.live.monitoring import verification

log = logging.getLogger(__name__)
ALARMS = "alarms"  # the fact that holds the alarms of the last look


def verify_issued(station: Station, ledger: Ledger, now: datetime) -> int:
    """Score every published forecast whose truth is in, once each; return how many.

    A truth with gaps is waited for until `live.verify_after_hours` after the last valid time.
    """
    patience = timedelta(hours=station.params.live.verify_after_hours)
    done = 0
    for cycle in ledger.unverified():
        valid_times = station.axis.truth_of(cycle.init_time)
        if valid_times[-1] > now:
            continue
        there = station.observations.frames(valid_times)
        if len(there) < len(valid_times) and now < valid_times[-1] + patience:
            continue
        try:
            sums = _sums(station, cycle, valid_times)
        except DamagedError as error:
            log.error("verification of %s: %s", iso(cycle.init_time), error)
            continue
        verified = Verification(cycle.init_time, cycle.revision, now, cycle.model, cycle.model_version, sums)
        with ledger.writing(fenced=True):
            ledger.add_verification(verified)
            ledger.enqueue(f"scores {iso(cycle.init_time)} {cycle.revision}", scores_record(cycle, verified))
        done += 1
    return done


def give_up(station: Station, ledger: Ledger, now: datetime) -> None:
    """Record as failed what is still due, past its deadline and older than `live.backfill_hours`."""
    oldest = now - timedelta(hours=station.params.live.backfill_hours)
    late = [it for it in ledger.cycles(until=oldest, states=[State.DUE]) if now >= (it.deadline_at or now)]
    if late:
        with ledger.writing(fenced=True):
            for cycle in late:
                failed = replace(cycle, state=State.FAILED, ended_at=now, reason=cycle.reason or "it became too old")
                ledger.put(failed, "failed", now)


def keep_house(station: Station, ledger: Ledger, now: datetime) -> None:
    """Look for drift, write the optional copies, and retire what is old."""
    _look_for_drift(station, ledger, now)
    kinds = station.params.live.copies
    if kinds:
        newest = ledger.cycles(states=VISIBLE, newest=1)
        for cycle in newest:
            _copy(station.folder, cycle, kinds)
    rules = station.params.live.retention
    recovery.retire(station.folder, ledger, rules, now)
    needed = [it.init_time for it in ledger.unverified()] or [now]
    oldest = (
        min(min(needed), now - timedelta(hours=rules.observations_hours)) - station.axis.history * station.axis.step
    )
    station.observations.prune(oldest)


def current_alarms(ledger: Ledger, now: datetime, options: Any) -> list[str]:
    """Return the signs of drift over the last `live.drift.days`."""
    since = verification.window(now, options)
    return verification.alarms(ledger.verifications(since), ledger.cycles(since, states=VISIBLE), options)


def sync(experiment: str, folder: Path, clock: Clock, root: Path = Path()) -> int:
    """Send what the tracker does not have yet, in ten seconds at most; return how many records arrived."""
    from fieldcast.pipeline.live import mlflow_sync as tracker

    with Ledger(folder / LEDGER) as ledger:
        pending = ledger.pending()
        if not pending:
            return 0
        records = [tracker.Record(seq=seq, **(content | {"at": parse(content["at"])})) for seq, content in pending]
        sent = tracker.send_records(experiment, records, root)
        ledger.mark_sent(sent, clock.now())
    return len(sent)


def _sums(station: Station, cycle: Cycle, valid_times: list[datetime]) -> dict[str, Any]:
    path = path_of(station.folder, cycle.init_time, cycle.revision)
    archive.check(path, cycle.manifest_sha256)
    with store.open_forecasts(path) as stored:
        forecast: xr.Dataset = stored.load()
    names = station.chosen.description.target_names
    observed = station.observations.read(valid_times, names)
    history = station.observations.read(station.axis.history_of(cycle.init_time), names)
    return verification.sums_of(forecast, observed, history, names, station.params.verify.thresholds)


def _look_for_drift(station: Station, ledger: Ledger, now: datetime) -> None:
    found = current_alarms(ledger, now, station.params.live.drift)
    before = ledger.fact(ALARMS) or ""
    text = "; ".join(found)
    if bool(text) != bool(before):  # numbers in the text change every cycle
        if text:
            log.warning("drift: %s", text)
        with ledger.writing(fenced=True):
            ledger.note("drift" if text else "drift_over", now, text)
            ledger.set_fact(ALARMS, text)


def _copy(folder: Path, cycle: Cycle, kinds: list[Any]) -> None:
    path = path_of(folder, cycle.init_time, cycle.revision)
    with store.open_forecasts(path) as forecast:
        write_copies(forecast, folder / COPIES, path.name.removesuffix(".zarr"), kinds)
