"""Exit codes: what a scheduler must repeat, what a person must mend, and what is done."""

import errno
import json
import os
from datetime import UTC, datetime

import pytest

from fieldcast.pipeline.errors import BusyError, CannotWriteError, DamagedError, InputError
from fieldcast.pipeline.live.outcomes import ExitCode, Outcome, Result, code_of, worst

INIT_TIME = datetime(2020, 10, 31, 6, tzinfo=UTC)


def of(result: Result, failure: ExitCode = ExitCode.BUG) -> Outcome:
    return Outcome(INIT_TIME, result, failure=failure)


@pytest.mark.parametrize(
    ("result", "plain", "detailed"),
    [
        (Result.DONE, 0, 0),
        (Result.ALREADY_DONE, 0, 10),
        (Result.DEGRADED, 0, 11),
        (Result.SKIPPED, 0, 12),
        (Result.NO_DATA_YET, 75, 75),
        (Result.FAILED, 73, 73),
    ],
)
def test_codes_of_results(result: Result, plain: int, detailed: int) -> None:
    outcome = of(result, ExitCode.CANNOT_WRITE)
    assert (outcome.exit_code(), outcome.exit_code(detailed=True)) == (plain, detailed)


def test_every_result_has_a_code() -> None:
    assert all(isinstance(of(result).exit_code(detailed=True), ExitCode) for result in Result)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("x"), 2),
        (DamagedError("x"), 74),
        (CannotWriteError("x"), 73),
        (BusyError("x"), 75),
        *((OSError(number, os.strerror(number)), 73) for number in (errno.ENOSPC, errno.EROFS, errno.EACCES)),
        (OSError(errno.EIO, "x"), 1),
        (ValueError("x"), 1),
        (KeyError("x"), 1),
    ],
    ids=repr,
)
def test_codes_of_errors(error: Exception, code: int) -> None:
    assert code_of(error) == code


def test_of_several_cycles_failures_count_most_then_what_waits_then_the_newest() -> None:
    done, skipped, waiting = of(Result.DONE), of(Result.SKIPPED), of(Result.NO_DATA_YET)
    full, damaged = of(Result.FAILED, ExitCode.CANNOT_WRITE), of(Result.FAILED, ExitCode.DAMAGED)
    assert worst([]) == 0
    assert worst([], detailed=True) == 10
    assert worst([skipped, done], detailed=True) == 0
    assert worst([done, skipped], detailed=True) == 12
    assert worst([done, skipped]) == 0
    assert worst([waiting, done]) == 75
    assert worst([full, waiting, done]) == 73
    assert worst([damaged, full, waiting]) == 73
    assert worst([full, damaged, waiting]) == 74


def test_json_has_what_a_program_needs() -> None:
    outcome = Outcome(INIT_TIME, Result.DEGRADED, "late", "x.zarr", "persistence", "fallback_persistence", ["t"])
    told = json.loads(json.dumps(outcome.as_dict()))
    assert told["init_time"] == "2020-10-31T06:00:00Z"
    assert (told["outcome"], told["exit_code"], told["quality"], told["missing"]) == (
        "degraded",
        11,
        "fallback_persistence",
        ["t"],
    )
