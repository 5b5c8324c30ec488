"""Artefacts of MLflow in a project folder that has been moved: its database holds their places in full."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

ARTEFACTS = "mlartifacts"
PLACES = {  # tables of MLflow's database and their columns with places
    "experiments": ("artifact_location",),
    "runs": ("artifact_uri",),
    "logged_models": ("artifact_location",),
    "model_versions": ("source", "storage_location"),
}


def follow(database: Path, folder: Path) -> None:
    """Let the database name the artefacts in `folder`, where these are, in place of the folder that they were in."""
    here = folder.resolve().as_uri()
    with closing(sqlite3.connect(database, timeout=5.0)) as opened:
        for (place,) in opened.execute("SELECT artifact_location FROM experiments").fetchall():
            before, _, name = str(place).rpartition(f"/{ARTEFACTS}/")
            if before and before != here and (folder / ARTEFACTS / name).is_dir():
                _replace(opened, f"{before}/{ARTEFACTS}/{name}", f"{here}/{ARTEFACTS}/{name}")
        opened.commit()


def _replace(opened: sqlite3.Connection, before: str, here: str) -> None:
    known = {name for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for table, columns in PLACES.items():
        for column in columns if table in known else ():
            statement = f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?"  # noqa: S608
            opened.execute(statement, (here, len(before) + 1, len(before), before))
