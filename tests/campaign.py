"""Sizes and cases of tests that have a short form in the suite and a full form in campaigns."""

import os
from collections.abc import Collection, Iterable
from typing import Any

import pytest


def size(short: int, full: int) -> int:
    """Return `full` under FIELDCAST_CAMPAIGN=1 (make campaign), else `short`."""
    return full if os.environ.get("FIELDCAST_CAMPAIGN") == "1" else short


def cases(every: Iterable[Any], in_the_suite: Collection[Any]) -> list[Any]:
    """Return parameters of a test, those that are not `in_the_suite` marked as cases of campaigns."""
    assert set(in_the_suite) <= set(every)
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=[] if case in in_the_suite else [pytest.mark.campaign],
        )
        for case in every
    ]
