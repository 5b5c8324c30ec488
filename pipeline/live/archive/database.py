"""How sqlite is used for records that must last: synced at every commit, its errors by what they ask of the user.

SQLite's pages have no checksum: rows carry the SHA-256 of their columns.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fieldcast.pipeline.datasets.atomic import free_bytes
from fieldcast.pipeline.errors import BusyError, CannotWriteError, DamagedError

BUSY_SECONDS = 5.0
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
NOT_WRITTEN = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
REBUILD = "move the file away; the next cycle writes a new one from the published forecasts"


def connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Return a connection whose transactions are written out and last once committed."""
    if read_only:  # what a killed writer left half done is undone by whoever opens the file next, if it may
        mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
        database = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, timeout=BUSY_SECONDS)
        settings = ["query_only = ON"]
    else:
        database = sqlite3.connect(path, timeout=BUSY_SECONDS)
        settings = ["journal_mode = DELETE", "synchronous = EXTRA"]
    database.isolation_level = None
    try:
        for setting in settings:
            database.execute(f"PRAGMA {setting}")
    except BaseException:
        database.close()
        raise
    return database


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn sqlite's errors into `BusyError`, `CannotWriteError` or `DamagedError` about the file `path`."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
        code = extended & 0xFF  # the rest tells its kinds apart
        if extended == sqlite3.SQLITE_READONLY_ROLLBACK:
            raise BusyError(f"{path}: its last writer was killed: the next cycle mends that, try again") from error
        if code in BUSY:
            raise BusyError(f"{path}: {error}: another process is writing, try again") from error
        if code in NOT_WRITTEN:
            raise CannotWriteError(
                f"{path}: {error} ({free_bytes(path.parent)} bytes free): free 10 MB there or mend its permissions"
            ) from error
        raise DamagedError(f"{path}: {error}: {REBUILD}") from error
    except UnicodeDecodeError as error:  # of sqlite's own message about a damaged file
        raise DamagedError(f"{path}: {error}: {REBUILD}") from error


def check_pages(path: Path, database: sqlite3.Connection, *tables: str) -> None:
    """Raise `DamagedError` where sqlite finds the pages of these tables, or of all, out of order."""
    queries = [f"PRAGMA integrity_check({table})" for table in tables] or ["PRAGMA integrity_check"]
    for query in queries:
        if (found := database.execute(query).fetchone()[0]) != "ok":
            raise DamagedError(f"{path}: {' '.join(found.split())}: {REBUILD}")


def digest(values: Any) -> str:
    """Return the SHA-256 of the columns of a row."""
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def check_row(path: Path, values: Any, expected: str, what: str) -> None:
    """Raise `DamagedError` unless a row has this SHA-256."""
    if digest(values) != expected:
        raise DamagedError(f"{path}: {what} is not what was written: {REBUILD}")
