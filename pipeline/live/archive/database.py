"""SQLite files that survive crashes: synced commits, checksummed rows, errors by what they ask of the user.

SQLite's pages have no checksum, so every row ends with the SHA-256 of its other columns.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from fieldcast.pipeline.datasets.atomic import free_bytes
from fieldcast.pipeline.errors import BusyError, CannotWriteError, DamagedError, InputError

BUSY_SECONDS = 5.0
BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}
NOT_WRITTEN = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR}
FACTS = "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT, row_sha256 TEXT NOT NULL) STRICT, WITHOUT ROWID"

Row = tuple[Any, ...]
Mode = Literal["write", "read", "copy"]  # copy: in memory, of a file that may be absent


class Database:
    """One connection to a file with tables of checksummed rows and a table of named facts."""

    SCHEMA: ClassVar[str]  # of the other tables
    VERSION: ClassVar[int]
    REPAIR: ClassVar[str]  # advice for a damaged file

    def __init__(self, path: Path, mode: Mode) -> None:
        """Open the file, in mode "write" made on first use; raise `InputError` for one of another version."""
        self.path = path
        with self._errors():
            self._db = connect(path, mode)
            try:
                if mode != "read":
                    self._create()
                self._require_version()
            except BaseException:
                self._db.close()
                raise

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Run the body in one transaction that lasts once committed; an error undoes all of it."""
        with self._errors():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def rows(self, query: str, values: Iterable[Any] = ()) -> list[Row]:
        """Return the rows of a query, unchecked."""
        with self._errors():
            return self._db.execute(query, list(values)).fetchall()

    def put_row(self, table: str, values: Iterable[Any], *chained: str) -> None:
        """Write a row in the place of one with its key, its SHA-256 last, of `chained` too; inside a transaction."""
        row = list(values)
        marks = ", ".join("?" * (len(row) + 1))
        self._db.execute(f"INSERT OR REPLACE INTO {table} VALUES ({marks})", [*row, digest([*row, *chained])])

    def checked(self, row: Row, name: str, *chained: str) -> Row:
        """Return a row without its SHA-256; raise `DamagedError` about `name` unless that is right."""
        if not is_whole(row, *chained):
            raise DamagedError(f"{self.path}: {name} is not what was written: {self.REPAIR}")
        return row[:-1]

    def check_pages(self, *tables: str, quick: bool = False) -> None:
        """Raise `DamagedError` where SQLite finds the pages of these tables, or of all, out of order."""
        check = "quick_check" if quick else "integrity_check"
        for query in [f"PRAGMA {check}({table})" for table in tables] or [f"PRAGMA {check}"]:
            if (message := self.rows(query)[0][0]) != "ok":
                raise DamagedError(f"{self.path}: {' '.join(message.split())}: {self.REPAIR}")

    def fact(self, name: str) -> str | None:
        """Return a stored fact, None where there is none."""
        rows = self.rows("SELECT * FROM facts WHERE name = ?", [name])
        return self.checked(rows[0], f"fact '{name}'")[1] if rows else None

    def set_fact(self, name: str, value: str) -> None:
        """Remember a fact; inside a transaction."""
        self.put_row("facts", (name, value))

    def _create(self) -> None:
        if self._version() < self.VERSION:
            with self.transaction():
                if (version := self._version()) < self.VERSION:  # another process may have been first
                    self._upgrade(version)
                    self._db.execute(f"PRAGMA user_version = {self.VERSION}")

    def _upgrade(self, version: int) -> None:
        """Bring the tables of an older version, 0 for an empty file, up to date; inside a transaction."""
        for statement in [*self.SCHEMA.split(";\n"), FACTS]:
            if statement.strip():
                self._db.execute(statement)

    def _version(self) -> int:
        return int(self.rows("PRAGMA user_version")[0][0])

    def _require_version(self) -> None:
        if (version := self._version()) != self.VERSION:
            raise InputError(
                f"{self.path}: version is {version}, expected {self.VERSION}: use the fieldcast that wrote it"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into `BusyError`, `CannotWriteError` or `DamagedError`."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.DatabaseError as error:
            extended = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            code = extended & 0xFF  # the other bits distinguish its kinds
            if extended == sqlite3.SQLITE_READONLY_ROLLBACK:
                message = "its last writer was killed: the next cycle repairs that, try again"
                raise BusyError(f"{self.path}: {message}") from error
            if code in BUSY:
                raise BusyError(f"{self.path}: {error}: another process is writing, try again") from error
            if code in NOT_WRITTEN:
                message = f"{error} ({free_bytes(self.path.parent)} bytes free)"
                raise CannotWriteError(
                    f"{self.path}: {message}: free 10 MB there or correct its permissions"
                ) from error
            raise DamagedError(f"{self.path}: {error}: {self.REPAIR}") from error
        except UnicodeDecodeError as error:  # of SQLite's own message about a damaged file
            raise DamagedError(f"{self.path}: {error}: {self.REPAIR}") from error


def connect(path: Path, mode: Mode) -> sqlite3.Connection:
    """Return a connection whose statements outside a transaction are committed at once."""
    if mode == "read":  # whoever opens the file next undoes what a killed writer left half done, if permitted
        access = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
        return _connected(f"{path.resolve().as_uri()}?mode={access}", "query_only = ON")
    if mode == "write":
        if not path.exists():
            path.touch(mode=0o600)  # private; sqlite gives its journal the same mode
        return _connected(path.resolve().as_uri(), "journal_mode = DELETE", "synchronous = EXTRA")
    database = _connected("file::memory:")
    if path.is_file():
        with closing(connect(path, "read")) as stored:
            stored.backup(database)
    return database


def _connected(uri: str, *settings: str) -> sqlite3.Connection:
    database = sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None)
    try:
        for setting in settings:
            database.execute(f"PRAGMA {setting}")
    except BaseException:
        database.close()
        raise
    return database


def digest(values: Iterable[Any]) -> str:
    """Return the SHA-256 of the columns of a row."""
    return hashlib.sha256(json.dumps(list(values), default=str).encode()).hexdigest()


def is_whole(row: Row, *chained: str) -> bool:
    """Return whether a row ends with the SHA-256 of its other columns and those `chained` to them."""
    return bool(digest([*row[:-1], *chained]) == row[-1])
