"""One run of the schedule: due cycles are forecast, published and recorded; earlier forecasts are verified.

Any scheduler may start it, at any time and any number of times: each init time ends once, as published, degraded,
skipped or failed, with a reason.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np

from fieldcast.pipeline.datasets.atomic import make_folder
from fieldcast.pipeline.datasets.times import to_numpy
from fieldcast.pipeline.errors import BusyError, DamagedError, redacted
from fieldcast.pipeline.live import post_cycle
from fieldcast.pipeline.live.archive import publish, recovery
from fieldcast.pipeline.live.archive.durable import failpoint
from fieldcast.pipeline.live.archive.ledger import OPEN, VISIBLE, Cycle, Ledger, State
from fieldcast.pipeline.live.archive.publish import Issue, path_of
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.live.deployed_model import DeployedModel
from fieldcast.pipeline.live.monitoring.drift import outside_share
from fieldcast.pipeline.live.outcomes import ExitCode, Outcome, Result, code_of
from fieldcast.pipeline.live.places.issue import dataset_of, packed

log = logging.getLogger(__name__)
GOOD, FILLED = "good", "filled"
SAME = "the same forecast is published"
Available = Mapping[datetime, str]  # time -> SHA-256 of its frame, '' for one that would be fetched


@dataclass
class Prepared:
    """A cycle that is about to be forecast."""

    cycle: Cycle
    history: np.ndarray  # (t, c, y, x), NaN where frames are missing
    lag: int  # frames missing at its end
    seconds: dict[str, float]

    @property
    def fallback(self) -> str | None:
        """Return the reference that takes the model's place."""
        return self.cycle.model if self.cycle.quality.startswith("fallback") else None


Compute = Callable[[Prepared], np.ndarray]


@dataclass(frozen=True)
class Request:
    """The terms on which cycles are run."""

    by_name: bool  # by init time, not by the schedule
    supersede: bool
    compute: Compute | None = None


def run(
    context: LiveContext,
    init_times: Sequence[datetime] | None = None,
    *,
    supersede: bool = False,
    compute: Compute | None = None,
    dry: bool = False,
) -> list[Outcome]:
    """Run everything that is due, or the given init times, and return the outcomes, oldest first.

    `supersede` issues a forecast anew that differs from the one published; `compute` makes the forecasts in the place
    of this process. `dry` decides as ever, with the frames that would be fetched, and writes nothing. Raise `BusyError`
    where another process keeps the lock, `InputError` where the feed does not fit the model.
    """
    now = context.clock.now()
    for init_time in init_times or ():
        context.schedule.require(init_time)
    request = Request(by_name=init_times is not None, supersede=supersede, compute=compute)
    if dry:
        with context.reading() as ledger:
            due = context.due(ledger, now) if init_times is None else init_times
            return [_dry_run(context, ledger, it, now, request) for it in due]
    with context.writing() as ledger:
        now = context.clock.now()  # another process may have had the lock until now
        due = context.plan(ledger, now) if init_times is None else init_times
        seconds = context.fetch_frames(ledger, due, now)
        outcomes = [_run_cycle(context, ledger, it, now, seconds, request) for it in due]
        if any(one.path and context.schedule.valid_times(one.init_time)[-1] <= now for one in outcomes):
            context.fetch_frames(ledger, [], now)  # observations to verify a past cycle exist already
        post_cycle.verify_issued(context, ledger, now)
        post_cycle.expire_overdue(context, ledger, now)
        post_cycle.record_drift(context, ledger, now)
        post_cycle.copy_issued(context, ledger, outcomes, now)
        post_cycle.apply_retention(context, ledger, now)
        post_cycle.rest(context, ledger, now)
    return outcomes


def forecast(context: LiveContext, prepared: Prepared) -> np.ndarray:
    """Return the members (m, lead, c, y, x) of a cycle by the deployed model, or one by the reference in its place."""
    init_time = to_numpy(prepared.cycle.init_time)
    if prepared.fallback:
        return context.model.fallback(prepared.fallback, prepared.history, init_time, prepared.lag)
    return context.model.forecast(prepared.history, init_time)


def prepare(context: LiveContext, cycle: Cycle, now: datetime, seconds: Mapping[str, float]) -> Prepared | Outcome:
    """Return the cycle with its history, ready to be forecast; or why there is nothing to forecast (yet)."""
    available = _stored(context, cycle.init_time)
    planned = plan_forecast(context, cycle, available, now)
    return planned if isinstance(planned, Outcome) else _with_history(context, planned, available, seconds)


def plan_forecast(context: LiveContext, cycle: Cycle, available: Available, now: datetime) -> Cycle | Outcome:
    """Return the row of the forecast to be made from these frames, or why none is made (yet)."""
    times = context.schedule.history_times(cycle.init_time)
    missing = [it for it in times if it not in available]
    reason = f"{len(missing)} of {len(times)} frames of its history are missing" if missing else ""
    if missing and cycle.deadline_at and now < cycle.deadline_at:
        waiting = f"{reason}; waiting for them until {iso(cycle.deadline_at)}"
        return outcome_of(context, cycle, waiting, Result.NO_DATA_YET, missing)
    quality, model = policy(context, times, available)
    if not quality:
        return outcome_of(context, cycle, reason, Result.SKIPPED, missing)
    facts = context.model.identity() | {
        "frames": [available.get(it) for it in times],
        "forecast_by": model,
        "code": importlib.metadata.version("fieldcast"),
    }
    return replace(
        cycle,
        model=model,
        model_version=context.model.version,
        quality=quality,
        n_input_missing=len(missing),
        run_key=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
        reason=reason,
    )


def policy(context: LiveContext, times: list[datetime], present: Collection[datetime]) -> tuple[str, str]:
    """Return the quality flag and the name of the model for a history, or two empty texts to skip the cycle."""
    rules, model = context.params.live.late_data, context.model.config.model
    missing = sum(it not in present for it in times)
    if not missing:
        return GOOD, model
    if times[-1] in present and missing <= rules.max_missing_frames:
        return FILLED, model
    if missing < len(times) and rules.fallback != "none":
        return f"fallback_{rules.fallback}", rules.fallback
    return "", ""


def outcome_of(
    context: LiveContext,
    cycle: Cycle,
    reason: str,
    result: Result | None = None,
    missing: Sequence[datetime] = (),
    *,
    timings: Mapping[str, float] | None = None,
    failure: ExitCode = ExitCode.BUG,
) -> Outcome:
    """Return the outcome of a cycle; without `result`, that of its quality."""
    published = cycle.state in VISIBLE
    return Outcome(
        cycle.init_time,
        result or (Result.DONE if cycle.quality == GOOD else Result.DEGRADED),
        reason,
        str(path_of(context.folder, cycle.init_time, cycle.revision)) if published else "",
        cycle.model,
        cycle.quality,
        [iso(it) for it in missing],
        dict(timings or {}),
        failure,
    )


def _run_cycle(
    context: LiveContext,
    ledger: Ledger,
    init_time: datetime,
    now: datetime,
    seconds: dict[str, float],
    request: Request,
) -> Outcome:
    cycle = _current(context, ledger, init_time, request)
    if not _is_open(cycle, request):
        return _already_done(context, cycle, now, request)
    row = _row_to_issue(cycle, now)
    try:
        prepared = prepare(context, row, now, seconds)
    except DamagedError as error:
        context.observations.discard_damaged()  # to be read from the source again
        return _failed(context, ledger, row, error, now)
    if isinstance(prepared, Outcome):
        return _without_forecast(ledger, row, prepared, now)
    if _is_published(context, cycle, prepared.cycle):
        return outcome_of(context, cycle, SAME, Result.ALREADY_DONE)
    prepared.cycle = _claim(ledger, prepared.cycle, now)
    return _forecast_and_publish(context, prepared, request.compute or (lambda it: forecast(context, it)), ledger)


def _dry_run(context: LiveContext, ledger: Ledger, init_time: datetime, now: datetime, request: Request) -> Outcome:
    """Return the outcome of `_run_cycle` where no forecast fails."""
    cycle = _current(context, ledger, init_time, request)
    if not _is_open(cycle, request):
        return _already_done(context, cycle, now, request)
    first = context.schedule.history_times(init_time)[0]
    available = dict.fromkeys(context.observations.peek(first, init_time), "") | _stored(context, init_time)
    planned = plan_forecast(context, _row_to_issue(cycle, now), available, now)
    if isinstance(planned, Outcome):
        return planned
    if _is_published(context, cycle, planned):
        return outcome_of(context, cycle, SAME, Result.ALREADY_DONE)
    return outcome_of(context, planned, planned.reason)


def _current(context: LiveContext, ledger: Ledger, init_time: datetime, request: Request) -> Cycle:
    """Return the row of an init time as it is now; what failed or was skipped is due again when asked for by name."""
    cycle = ledger.cycle(init_time) or context.new_cycle(init_time)
    if request.by_name and cycle.state in (State.FAILED, State.SKIPPED):
        return replace(cycle, state=State.DUE, attempt=0)
    return cycle


def _is_open(cycle: Cycle, request: Request) -> bool:
    return cycle.state in OPEN or (cycle.state in VISIBLE and request.supersede)


def _row_to_issue(cycle: Cycle, now: datetime) -> Cycle:
    """Return the row that a forecast is issued under: the cycle's own, or that of a revision."""
    return cycle if cycle.state in OPEN else Cycle(cycle.init_time, cycle.revision + 1, due_at=now, deadline_at=now)


def _is_published(context: LiveContext, cycle: Cycle, planned: Cycle) -> bool:
    """Return whether the planned forecast is the one that readers have, undamaged."""
    if cycle.state not in VISIBLE or planned.run_key != cycle.run_key:
        return False
    try:
        publish.check(path_of(context.folder, cycle.init_time, cycle.revision), cycle.manifest_sha256)
    except DamagedError:
        return False
    return True


def _already_done(context: LiveContext, cycle: Cycle, now: datetime, request: Request) -> Outcome:
    """Return that a cycle is done; raise where its forecast is missing, or would differ if it were made again."""
    if cycle.state in VISIBLE:
        recovery.require_present(context.folder, cycle)
        publish.check(path_of(context.folder, cycle.init_time, cycle.revision), cycle.manifest_sha256)
        if request.by_name and _would_differ(context, cycle, now):
            reason = (
                f"published by {cycle.model} {cycle.model_version} from other frames: --supersede issues a revision"
            )
            return outcome_of(context, cycle, reason, Result.FAILED, failure=ExitCode.CANNOT_WRITE)
    return outcome_of(context, cycle, f"{cycle.state}: {cycle.reason}".rstrip(": "), Result.ALREADY_DONE)


def _would_differ(context: LiveContext, cycle: Cycle, now: datetime) -> bool:
    """Return whether a forecast from the stored frames, if they are no fewer than before, would be another one."""
    planned = plan_forecast(context, replace(cycle, deadline_at=now), _stored(context, cycle.init_time), now)
    return (
        isinstance(planned, Cycle)
        and planned.n_input_missing <= cycle.n_input_missing
        and planned.run_key != cycle.run_key
    )


def _stored(context: LiveContext, init_time: datetime) -> dict[datetime, str]:
    times = context.schedule.history_times(init_time)
    return {time: frame.sha256 for time, frame in context.observations.frames(times).items()}


def _with_history(context: LiveContext, cycle: Cycle, available: Available, seconds: Mapping[str, float]) -> Prepared:
    before = time.perf_counter()
    times = context.schedule.history_times(cycle.init_time)
    history = context.observations.read(times, context.model.names)
    share = outside_share(history, context.model.config.channels)
    lag = next(i for i in range(len(times)) if times[-1 - i] in available)
    seconds = {**seconds, "read": time.perf_counter() - before}
    return Prepared(replace(cycle, outside_share=share), history, lag, seconds)


def _without_forecast(ledger: Ledger, row: Cycle, outcome: Outcome, now: datetime) -> Outcome:
    """Record that a cycle is waiting, or that it ends without a forecast; a published one stays as it is."""
    state = State.SKIPPED if outcome.result is Result.SKIPPED else State.DUE
    ended = replace(row, state=state, reason=outcome.reason, n_input_missing=len(outcome.missing), ended_at=now)
    if row.revision == 0 and (state is State.SKIPPED or ledger.cycle(row.init_time) is None):
        with ledger.writing(fenced=True):
            ledger.put(ended, str(state), now)
    return outcome


def _claim(ledger: Ledger, cycle: Cycle, now: datetime) -> Cycle:
    claimed = replace(
        cycle, state=State.RUNNING, attempt=cycle.attempt + 1, token=ledger.token, started_at=now, ended_at=None
    )
    with ledger.writing(fenced=True):
        ledger.put(claimed, "running", now)
    failpoint("claimed")
    return claimed


def _forecast_and_publish(context: LiveContext, prepared: Prepared, compute: Compute, ledger: Ledger) -> Outcome:
    """Forecast a claimed cycle and publish it; an error leaves it due or, after the last attempt, failed."""
    cycle, now = prepared.cycle, context.clock.now()
    try:
        before = time.perf_counter()
        members = compute(prepared)
        prepared.seconds["model"] = time.perf_counter() - before
        _require_valid(prepared, members, context.model)
        published = _publish(context, prepared, members, ledger)
    except Exception as error:
        return _failed(context, ledger, cycle, error, now)
    return outcome_of(context, published, published.reason, timings=prepared.seconds)


def _publish(context: LiveContext, prepared: Prepared, members: np.ndarray, ledger: Ledger) -> Cycle:
    cycle, folder, before = prepared.cycle, context.folder, time.perf_counter()
    target = path_of(folder, cycle.init_time, cycle.revision)
    make_folder(target.parent)
    publish.require_space(folder, members.nbytes, context.params.live.reserve_megabytes * 1e6)
    config = context.model.config
    issue = Issue(
        cycle.init_time,
        cycle.revision,
        cycle.model,
        cycle.model_version,
        cycle.quality,
        cycle.n_input_missing,
        cycle.run_key,
        config.signature.digest,
        config.step_minutes,
    )
    grid = context.observations.grid()[config.target_names]
    products, places = context.params.live.products, _places(context, prepared, members, issue)
    staging, digest = publish.stage(target, issue, grid, members, ledger.token, products, places)
    now = context.clock.now()
    prepared.seconds["publish"] = time.perf_counter() - before  # all but the rename and the record of it
    published = replace(
        cycle,
        state=State.PUBLISHED if cycle.quality == GOOD else State.DEGRADED,
        ended_at=now,
        manifest_sha256=digest,
        timings={name: round(value, 4) for name, value in prepared.seconds.items()},
    )
    publish.commit(folder, ledger, published, staging, now)
    return published


def _places(context: LiveContext, prepared: Prepared, members: np.ndarray, issue: Issue) -> bytes | None:
    """Return the file of forecasts for the places of `live.places`; None without any."""
    if context.places is None:
        return None
    model_digest = "" if prepared.fallback else context.model.digest
    forecasts = context.places.forecast(members, prepared.history, model_digest)
    signature, quantities = context.model.config.signature, context.places.quantities
    return packed(dataset_of(forecasts, quantities, signature, issue.init_time, issue.facts()))


def _require_valid(prepared: Prepared, members: np.ndarray, model: DeployedModel) -> None:
    """Raise `RuntimeError` for a forecast that must not be published."""
    config = model.config
    observed = np.isfinite(prepared.history[:, : config.targets]).any(axis=0)
    if members.shape[1:] != (config.horizon, *observed.shape):
        raise RuntimeError(f"the model gave shape {members.shape[1:]}, expected {(config.horizon, *observed.shape)}")
    if wrong := int((~np.isfinite(members) & observed).sum()):
        raise RuntimeError(f"the model gave {wrong} values that are not finite in cells that were observed")


def _failed(context: LiveContext, ledger: Ledger, cycle: Cycle, error: Exception, now: datetime) -> Outcome:
    """Record a failed attempt: due again, unless it was the model's fault and the last attempt."""
    code = code_of(error)
    ledger.is_orderly = False
    reason = redacted(f"{type(error).__name__}: {error}") if code is ExitCode.BUG else str(error)
    log.error("cycle %s: %s", iso(cycle.init_time), reason, exc_info=code is ExitCode.BUG)
    counts = code is ExitCode.BUG  # damage is mended, disks are emptied, and another process ends: the cycle stays due
    final = counts and cycle.attempt >= context.params.live.max_attempts
    if cycle.revision:  # the published revision stays, and the schedule does not ask for another
        final = True
    failed = replace(
        cycle,
        state=State.FAILED if final else State.DUE,
        attempt=cycle.attempt if counts or cycle.state is not State.RUNNING else cycle.attempt - 1,
        reason=reason,
        ended_at=now,
    )
    if not isinstance(error, BusyError):
        with ledger.writing(fenced=True):
            ledger.put(failed, str(failed.state), now)
    return outcome_of(context, failed, reason, Result.FAILED, failure=code)
