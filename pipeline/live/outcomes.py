"""The outcome of a cycle, and the exit codes that report it to schedulers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

from fieldcast.pipeline.errors import exit_code
from fieldcast.pipeline.live.clock import iso


class ExitCode(IntEnum):
    """Exit codes of the commands for scheduled forecasts; `docs/scheduled.md` says what to do for each."""

    DONE = 0
    BUG = 1
    BAD_INPUT = 2
    ALREADY_DONE = 10  # 10 to 12 only with --detailed-exit-code, else 0
    DEGRADED = 11
    SKIPPED = 12
    ALARM = 13  # fieldcast status: forecasts have become worse
    LATE = 14  # fieldcast status: the newest cycle is overdue or failed
    CANNOT_WRITE = 73
    DAMAGED = 74
    TRY_AGAIN = 75


class Result(StrEnum):
    """The end of a cycle."""

    DONE = "done"
    ALREADY_DONE = "already_done"
    DEGRADED = "degraded"
    SKIPPED = "skipped"
    NO_DATA_YET = "no_data_yet"
    FAILED = "failed"


DETAILED = {
    Result.DONE: ExitCode.DONE,
    Result.ALREADY_DONE: ExitCode.ALREADY_DONE,
    Result.DEGRADED: ExitCode.DEGRADED,
    Result.SKIPPED: ExitCode.SKIPPED,
    Result.NO_DATA_YET: ExitCode.TRY_AGAIN,
}


@dataclass(frozen=True)
class Outcome:
    """The end of one cycle, its reason, and the path of the forecast."""

    init_time: datetime
    result: Result
    reason: str = ""
    path: str = ""
    model: str = ""
    quality: str = ""
    missing: list[str] = field(default_factory=list)  # times of frames that were not there
    timings: dict[str, float] = field(default_factory=dict)  # seconds
    failure: ExitCode = ExitCode.BUG  # of a failed cycle

    def exit_code(self, *, detailed: bool = False) -> ExitCode:
        """Return the exit code; without `detailed`, 0 for all that needs no repeating."""
        if self.result is Result.FAILED:
            return self.failure
        code = DETAILED[self.result]
        return code if detailed or code is ExitCode.TRY_AGAIN else ExitCode.DONE

    def as_dict(self) -> dict[str, Any]:
        """Return the facts that `--json` prints."""
        facts = asdict(self) | {"init_time": iso(self.init_time)}
        del facts["failure"]
        facts["outcome"] = str(facts.pop("result"))
        return facts | {"exit_code": int(self.exit_code(detailed=True))}


def code_of(error: BaseException) -> ExitCode:
    """Return the exit code that an error stands for."""
    return ExitCode(exit_code(error))


def worst(outcomes: Sequence[Outcome], *, detailed: bool = False) -> ExitCode:
    """Return the exit code of several cycles: of the last failure, else "try again" if any waits, else the newest's."""
    codes = [outcome.exit_code(detailed=detailed) for outcome in outcomes]
    failures = [outcome.failure for outcome in outcomes if outcome.result is Result.FAILED]
    if failures:
        return failures[-1]
    if ExitCode.TRY_AGAIN in codes:
        return ExitCode.TRY_AGAIN
    return codes[-1] if codes else ExitCode.ALREADY_DONE if detailed else ExitCode.DONE


def describe(outcome: Outcome) -> str:
    """Return an outcome in one line."""
    words = [iso(outcome.init_time), str(outcome.result).replace("_", " ")]
    words += [f"by {outcome.model}"] if outcome.path and outcome.model else []
    words += [f"({outcome.reason})"] if outcome.reason else []
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in outcome.timings.items())
    return " ".join(words) + (f": {seconds}" if seconds else "")


def describe_dry(outcome: Outcome) -> str:
    """Return the outcome of a dry run in one line."""
    by_model = f"would be forecast by {outcome.model}"
    words = {
        Result.DONE: by_model,
        Result.DEGRADED: by_model,
        Result.ALREADY_DONE: "is done",
        Result.SKIPPED: "would be skipped",
        Result.NO_DATA_YET: "would wait",
        Result.FAILED: "would fail",
    }[outcome.result]
    return f"{iso(outcome.init_time)} {words}" + (f" ({outcome.reason})" if outcome.reason else "")
