"""What became of a cycle, and the exit codes that say so to schedulers."""

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
    """How a cycle ended."""

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
    """How one cycle ended, why, and where its forecast lies."""

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
        """Return the exit code; without `detailed`, whatever needs no repeating is 0."""
        if self.result is Result.FAILED:
            return self.failure
        code = DETAILED[self.result]
        return code if detailed or code is ExitCode.TRY_AGAIN else ExitCode.DONE

    def as_dict(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        facts = asdict(self) | {"init_time": iso(self.init_time)}
        del facts["failure"]
        facts["outcome"] = str(facts.pop("result"))
        return facts | {"exit_code": int(self.exit_code(detailed=True))}


def code_of(error: BaseException) -> ExitCode:
    """Return the exit code that an error stands for."""
    return ExitCode(exit_code(error))


def worst(outcomes: Sequence[Outcome], *, detailed: bool = False) -> ExitCode:
    """Return the exit code of several cycles: of a failure, else that one must be tried again, else the newest's."""
    codes = [it.exit_code(detailed=detailed) for it in outcomes]
    failures = [it.failure for it in outcomes if it.result is Result.FAILED]
    if failures:
        return failures[-1]
    if ExitCode.TRY_AGAIN in codes:
        return ExitCode.TRY_AGAIN
    return codes[-1] if codes else ExitCode.ALREADY_DONE if detailed else ExitCode.DONE
