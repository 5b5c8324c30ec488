"""A disk that is not waited for: only a power failure, which no test has, loses writes that the system has."""

import os
import sqlite3
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest


class Unsynced(sqlite3.Connection):
    """A connection that leaves the time of writing to the system."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return super().execute("PRAGMA synchronous = OFF" if sql.startswith("PRAGMA synchronous") else sql, *values)


@pytest.fixture(scope="module")
def unsynced() -> Iterator[None]:
    """Let writes return before the disk has them, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Unsynced))
        yield
