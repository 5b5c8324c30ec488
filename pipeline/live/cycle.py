"""One look at the schedule: what is due is forecast, published and recorded, and what has come true is verified.

Whoever wakes it (cron, systemd, Kubernetes, `fieldcast serve`, a person) and however often, each init time ends once:
published, degraded, skipped or failed, with a reason.
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
from fieldcast.pipeline.errors import BusyError, DamagedError
from fieldcast.pipeline.live import deployed_model as choice
from fieldcast.pipeline.live import post_cycle as afterwards
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive import recovery
from fieldcast.pipeline.live.archive.durable import failpoint
from fieldcast.pipeline.live.archive.ledger import OPEN, VISIBLE, Cycle, Ledger, State
from fieldcast.pipeline.live.archive.publish import Issue, path_of
from fieldcast.pipeline.live.clock import iso
from fieldcast.pipeline.live.context import Station
from fieldcast.pipeline.live.deployed_model import Chosen
from fieldcast.pipeline.live.monitoring import verification
from fieldcast.pipeline.live.outcomes import ExitCode, Outcome, Result, code_of

log = logging.getLogger(__name__)
GOOD, FILLED = "good", "filled"


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
class Demand:
    """Who wants cycles, and how."""

    asked_for: bool  # by init time, not by the schedule
    supersede: bool
    compute: Compute | None


def run(
    station: Station,
    init_times: Sequence[datetime] | None = None,
    *,
    supersede: bool = False,
    compute: Compute | None = None,
) -> list[Outcome]:
    """Deal with everything that is due, or with the given init times, and return what became of each, oldest first.

    `supersede` issues a forecast anew that differs from the one published; `compute` makes the forecasts in the place
    of this process. Raise `BusyError` where another process
    keeps the lock, `InputError` where the feed does not fit the model.
    """
    now = station.clock.now()
    for init_time in init_times or ():
        station.axis.require(init_time)
    with station.writing() as ledger:
        wanted = list(init_times) if init_times is not None else station.plan(ledger, now)
        seconds = station.bring_in(ledger, wanted, now)
        demand = Demand(asked_for=init_times is not None, supersede=supersede, compute=compute)
        outcomes = [_deal_with(station, ledger, it, now, seconds, demand) for it in wanted]
        if any(it.path and station.axis.truth_of(it.init_time)[-1] <= now for it in outcomes):
            station.bring_in(ledger, [], now)  # of a past cycle the truth is known already
        afterwards.verify_issued(station, ledger, now)
        afterwards.give_up(station, ledger, now)
        afterwards.keep_house(station, ledger, now)
    return outcomes


def publish(station: Station, prepared: Prepared, compute: Compute, ledger: Ledger) -> Outcome:
    """Forecast a claimed cycle and publish it; an error leaves it due or, after the last attempt, failed."""
    cycle, now = prepared.cycle, station.clock.now()
    try:
        before = time.perf_counter()
        fields = compute(prepared)
        prepared.seconds["model"] = time.perf_counter() - before
        _require_sound(prepared, fields, station.chosen)
        done = _publish(station, prepared, fields, ledger)
    except Exception as error:
        return _failed(station, ledger, cycle, error, now)
    return outcome_of(station, done, done.reason, timings=prepared.seconds)


def forecast(station: Station, prepared: Prepared) -> np.ndarray:
    """Return the forecast (lead, c, y, x) of a cycle by the chosen model, or by the reference that takes its place."""
    init_time = to_numpy(prepared.cycle.init_time)
    if prepared.fallback:
        return station.chosen.fallback(prepared.fallback, prepared.history, init_time, prepared.lag)
    return station.chosen.forecast(prepared.history, init_time)


def prepare(station: Station, cycle: Cycle, now: datetime, seconds: Mapping[str, float]) -> Prepared | Outcome:
    """Return the cycle with its history and how it will be forecast; or why there is nothing to forecast (yet)."""
    times = station.axis.history_of(cycle.init_time)
    present = station.observations.frames(times)
    missing = [it for it in times if it not in present]
    reason = f"{len(missing)} of {len(times)} frames of its history are missing" if missing else ""
    if missing and cycle.deadline_at and now < cycle.deadline_at:
        waiting = f"{reason}; waiting for them until {iso(cycle.deadline_at)}"
        return outcome_of(station, cycle, waiting, Result.NO_DATA_YET, missing)
    quality, model = policy(station, times, present)
    if not quality:
        return outcome_of(station, cycle, reason, Result.SKIPPED, missing)
    before = time.perf_counter()
    history = station.observations.read(times, station.chosen.names)
    facts = choice.identity(station.chosen) | {
        "frames": [present[it].sha256 if it in present else None for it in times],
        "forecast_by": model,
        "code": importlib.metadata.version("fieldcast"),
    }
    told = replace(
        cycle,
        model=model,
        model_version=station.chosen.version,
        quality=quality,
        n_input_missing=len(missing),
        outside_share=verification.outside_share(history, station.chosen.description.channels),
        run_key=hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest(),
        reason=reason,
    )
    lag = next(i for i in range(len(times)) if times[-1 - i] in present)
    return Prepared(told, history, lag, {**seconds, "read": time.perf_counter() - before})


def policy(station: Station, times: list[datetime], present: Collection[datetime]) -> tuple[str, str]:
    """Return the quality flag and the name of the model for a history, or two empty texts to skip the cycle."""
    rules, own = station.params.live.late_data, station.chosen.description.model
    missing = len(times) - len(present)
    if not missing:
        return GOOD, own
    if times[-1] in present and missing <= rules.max_missing_frames:
        return FILLED, own
    if present and rules.fallback != "none":
        return f"fallback_{rules.fallback}", rules.fallback
    return "", ""


def _deal_with(
    station: Station,
    ledger: Ledger,
    init_time: datetime,
    now: datetime,
    seconds: dict[str, float],
    demand: Demand,
) -> Outcome:
    cycle = ledger.cycle(init_time) or station.due(init_time)
    if demand.asked_for and cycle.state in (State.FAILED, State.SKIPPED):
        cycle = replace(cycle, state=State.DUE, attempt=0)  # whoever asks for it by name has mended something
    if cycle.state not in OPEN and not (cycle.state in VISIBLE and demand.supersede):
        return _already(station, cycle, now, demand.asked_for)
    row = cycle if cycle.state in OPEN else Cycle(init_time, cycle.revision + 1, due_at=now, deadline_at=now)
    try:
        prepared = prepare(station, row, now, seconds)
    except DamagedError as error:
        station.observations.discard_damaged()  # to be read from the source again
        return _failed(station, ledger, row, error, now)
    if isinstance(prepared, Outcome):
        return _without_forecast(ledger, row, prepared, now)
    if cycle.state in VISIBLE and prepared.cycle.run_key == cycle.run_key and _is_whole(station, cycle):
        return outcome_of(station, cycle, "the same forecast is published", Result.ALREADY_DONE)
    prepared.cycle = _claim(ledger, prepared.cycle, now)
    return publish(station, prepared, demand.compute or (lambda it: forecast(station, it)), ledger)


def _is_whole(station: Station, cycle: Cycle) -> bool:
    try:
        archive.check(path_of(station.folder, cycle.init_time, cycle.revision), cycle.manifest_sha256)
    except DamagedError:
        return False
    return True


def _already(station: Station, cycle: Cycle, now: datetime, asked_for: bool) -> Outcome:
    """Return that a cycle is done; raise where its forecast has gone, or would differ if it were made again."""
    if cycle.state in VISIBLE:
        recovery.require_present(station.folder, cycle)
        archive.check(path_of(station.folder, cycle.init_time, cycle.revision), cycle.manifest_sha256)
        again = prepare(station, replace(cycle, deadline_at=now), now, {}) if asked_for else None
        whole = isinstance(again, Prepared) and again.cycle.n_input_missing <= cycle.n_input_missing
        if isinstance(again, Prepared) and whole and again.cycle.run_key != cycle.run_key:
            reason = (
                f"published by {cycle.model} {cycle.model_version} from other frames: --supersede issues a revision"
            )
            return outcome_of(station, cycle, reason, Result.FAILED, failure=ExitCode.CANNOT_WRITE)
    return outcome_of(station, cycle, f"{cycle.state}: {cycle.reason}".rstrip(": "), Result.ALREADY_DONE)


def _without_forecast(ledger: Ledger, row: Cycle, outcome: Outcome, now: datetime) -> Outcome:
    """Record that a cycle is waiting, or that it ends without a forecast; a published one stays as it is."""
    state = State.SKIPPED if outcome.result is Result.SKIPPED else State.DUE
    kept = replace(row, state=state, reason=outcome.reason, n_input_missing=len(outcome.missing))
    if row.revision == 0 and (state is State.SKIPPED or ledger.cycle(row.init_time) is None):
        with ledger.writing(fenced=True):
            ledger.put(replace(kept, ended_at=now), str(state), now)
    return outcome


def _publish(station: Station, prepared: Prepared, fields: np.ndarray, ledger: Ledger) -> Cycle:
    cycle, folder, before = prepared.cycle, station.folder, time.perf_counter()
    target = path_of(folder, cycle.init_time, cycle.revision)
    make_folder(target.parent)
    archive.require_space(folder, fields, station.params.live.reserve_megabytes * 1e6)
    own = station.chosen.description
    issue = Issue(
        cycle.init_time,
        cycle.revision,
        cycle.model,
        cycle.model_version,
        cycle.quality,
        cycle.n_input_missing,
        cycle.run_key,
        own.signature.digest,
        own.step_minutes,
    )
    grid = station.observations.grid()[own.target_names]
    staging, digest = archive.stage(target, issue, grid, fields, ledger.token)
    now = station.clock.now()
    prepared.seconds["publish"] = time.perf_counter() - before  # all but the rename and the record of it
    done = replace(
        cycle,
        state=State.PUBLISHED if cycle.quality == GOOD else State.DEGRADED,
        ended_at=now,
        manifest_sha256=digest,
        timings={name: round(value, 4) for name, value in prepared.seconds.items()},
    )
    archive.commit(folder, ledger, done, staging, now)
    return done


def _claim(ledger: Ledger, cycle: Cycle, now: datetime) -> Cycle:
    claimed = replace(
        cycle, state=State.RUNNING, attempt=cycle.attempt + 1, token=ledger.token, started_at=now, ended_at=None
    )
    with ledger.writing(fenced=True):
        ledger.put(claimed, "running", now)
    failpoint("claimed")
    return claimed


def _require_sound(prepared: Prepared, fields: np.ndarray, chosen: Chosen) -> None:
    """Raise `RuntimeError` for a forecast that must not be published."""
    own = chosen.description
    seen = np.isfinite(prepared.history[:, : own.targets]).any(axis=0)
    if fields.shape != (own.horizon, *seen.shape):
        raise RuntimeError(f"the model gave shape {fields.shape}, expected {(own.horizon, *seen.shape)}")
    if wrong := int((~np.isfinite(fields) & seen).sum()):
        raise RuntimeError(f"the model gave {wrong} values that are not finite in cells that were observed")


def _failed(station: Station, ledger: Ledger, cycle: Cycle, error: Exception, now: datetime) -> Outcome:
    """Record a failed attempt: due again, unless it was the model's fault and the last attempt."""
    code = code_of(error)
    reason = f"{type(error).__name__}: {error}" if code is ExitCode.BUG else str(error)
    log.error("cycle %s: %s", iso(cycle.init_time), reason, exc_info=code is ExitCode.BUG)
    ours = code in (ExitCode.BUG, ExitCode.DAMAGED)
    over = ours and cycle.attempt >= station.params.live.max_attempts
    kept = replace(cycle, state=State.FAILED if over else State.DUE, reason=reason, ended_at=now)
    if not ours:
        kept = replace(kept, attempt=cycle.attempt - 1)  # a full disk or another process is not the cycle's fault
    if cycle.revision and not over:  # nobody asks for it again by itself; the published revision stays
        kept = replace(kept, state=State.FAILED)
    if not isinstance(error, BusyError):
        with ledger.writing(fenced=True):
            ledger.put(kept, str(kept.state), now)
    return outcome_of(station, kept, reason, Result.FAILED, failure=code)


def outcome_of(
    station: Station,
    cycle: Cycle,
    reason: str,
    result: Result | None = None,
    missing: Sequence[datetime] = (),
    *,
    timings: Mapping[str, float] | None = None,
    failure: ExitCode = ExitCode.BUG,
) -> Outcome:
    """Return how a cycle stands; without `result` its state says it."""
    published = cycle.state in VISIBLE
    of_state = Result.DONE if cycle.state is State.PUBLISHED else Result.DEGRADED
    return Outcome(
        cycle.init_time,
        result or of_state,
        reason,
        str(path_of(station.folder, cycle.init_time, cycle.revision)) if published else "",
        cycle.model,
        cycle.quality,
        [iso(it) for it in missing],
        dict(timings or {}),
        failure,
    )
