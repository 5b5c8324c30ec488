"""A small project in an empty folder: the default parameters, shrunk until every stage takes seconds.

What takes seconds to import is imported by the fixtures that need it, so that tests of text and options start at once.
"""

import copy
import os
import shutil
import sqlite3
import sqlite3.dbapi2
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets.paths import OBSERVATIONS, PREPARED

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
CHROMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

SMALL: dict[str, Any] = {
    "source": {"cells": 24, "events": 6, "event_minutes": 100, "event_every_minutes": 360},
    "ingest": {"shard_frames": 72},
    "prepare": {
        "splits": {
            "train": {"start": "2024-06-01T00:00", "end": "2024-06-01T13:40", "every_steps": 1},
            "validation": {"start": "2024-06-01T18:00", "end": "2024-06-01T23:55"},
            "test": {"start": "2024-06-02T06:00", "end": "2024-06-02T07:40", "every_steps": 2},
        }
    },
    "sample": {"history": 3, "horizon": 4},
    "train": {"epochs": 2, "batch_size": 8, "precision": "32-true", "loss": "mse", "augment": "none"},
    "forecast": {"batch_size": 2},
    "verify": {"thresholds": {"rain_rate": [0.5, 2]}, "neighbourhoods_km": [2, 10]},
    "promotion": {"leads_minutes": [10, 20]},
    "track": {"experiment": "small"},
    "live": {"model": "data/checkpoints/convlstm"},
}
MODELS: dict[str, dict[str, Any]] = {
    "persistence": {"kind": "persistence"},
    "climatology": {"kind": "climatology"},
    "damped_persistence": {"kind": "damped_persistence"},
    "advection": {"kind": "advection"},
    "steps": {"kind": "steps"},
    "convlstm": {"kind": "recurrent", "hidden": [8], "patch": 4},
    "video_transformer": {"kind": "video_transformer", "channels": 4, "dim": 16, "heads": 2, "layers": 1, "patch": 8},
    "convlstm_quantiles": {"kind": "recurrent", "hidden": [8], "patch": 4, "output": "quantiles"},
}


SLOW = (  # files whose tests are all marked `slow`: they read real archives, start browsers or processes, or train
    "tests/benchmarks/",
    "tests/docs/test_model_table.py",
    "tests/evaluation/test_champion.py",
    "tests/explain/test_attribution.py",
    "tests/forecasting/test_online.py",
    "tests/forecasting/test_tiling.py",
    "tests/live/replay/",
    "tests/live/test_backfill.py",
    "tests/live/test_commands.py",
    "tests/live/test_timekeeping.py",
    "tests/project/test_campaigns.py",
    "tests/real/",
    "tests/report/test_browser.py",
    "tests/sources/test_s3.py",
    "tests/stages/test_damage.py",
    "tests/training/test_dry_run.py",
    "tests/training/test_memory.py",
)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of slow files, and leave out those that only campaigns run."""
    for item in items:
        if item.nodeid.startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    if os.environ.get("FIELDCAST_CAMPAIGN") == "1":
        return
    campaigns = [item for item in items if item.get_closest_marker("campaign")]
    config.hook.pytest_deselected(items=campaigns)
    items[:] = [item for item in items if item not in campaigns]


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes` put in, mappings key by key."""
    result = copy.deepcopy(base)
    for key, value in changes.items():
        result[key] = merged(result[key], value) if isinstance(value, dict) and key in result else value
    return result


class Unsynced(sqlite3.Connection):
    """A connection that leaves the time of writing to the system."""

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        return super().execute("PRAGMA synchronous = OFF" if sql.startswith("PRAGMA synchronous") else sql, *values)


class UnsyncedTracker(sqlite3.Connection):
    """A connection of MLflow's, which says nothing about it."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.execute("PRAGMA synchronous = OFF")


CONNECT = sqlite3.connect


@pytest.fixture(scope="session", autouse=True)
def unsynced() -> Iterator[None]:
    """Let writes of this process return before the disk has them, which only a power failure would lose."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(sqlite3, "connect", partial(CONNECT, factory=Unsynced))
        patch.setattr(sqlite3.dbapi2, "connect", partial(CONNECT, factory=UnsyncedTracker))  # as SQLAlchemy calls it
        yield


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let databases wait for the disk as they ask to."""
    monkeypatch.setattr(sqlite3, "connect", CONNECT)


@pytest.fixture(autouse=True)
def patient() -> None:
    """Let each test wait for trackers as long as a process may."""
    if patience := sys.modules.get("fieldcast.pipeline.tracking.patience"):
        patience.start()


@pytest.fixture(scope="session")
def small() -> dict[str, Any]:
    """Return the content of a small params.yaml."""
    content = merged(yaml.safe_load((ROOT / "params.yaml").read_text()), SMALL) | {"models": copy.deepcopy(MODELS)}
    del content["source"]["start"]
    content["source"]["start"] = "2024-06-01T00:00"
    return content


@pytest.fixture(scope="session")
def prepared(small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with params.yaml, observations and prepared data; tests work on copies."""
    from fieldcast.pipeline.datasets.store import open_observations
    from fieldcast.pipeline.ingest import ingest
    from fieldcast.pipeline.prepare import prepare

    folder = tmp_path_factory.mktemp("prepared")
    (folder / "params.yaml").write_text(yaml.safe_dump(small))
    params = config.read(folder / "params.yaml")
    ingest(params.source, params.ingest, folder / OBSERVATIONS)
    observations = open_observations(folder / OBSERVATIONS, chunks="shards")
    prepare(observations, params.prepare, params.sample.history, params.sample.horizon, folder / PREPARED)
    return folder


@pytest.fixture(scope="session")
def tracker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an empty MLflow database, whose creation takes seconds."""
    from fieldcast.pipeline.tracking import runs as tracking

    folder = tmp_path_factory.mktemp("tracker")
    tracking.open_client(folder).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def project(prepared: Path, tracker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project of one's own, which is the working directory, with prepared data and an empty tracker."""
    folder = tmp_path / "project"
    shutil.copytree(prepared, folder)
    shutil.copy(tracker, folder / "mlflow.db")
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture(scope="module")  # its event loop must be closed before other modules start one
def browser() -> Iterator["Browser"]:
    """Return a headless Chromium; in CI its absence is a failure."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, CHROMES)), None)
    if executable is None and "CI" not in os.environ:
        pytest.skip(f"no browser: none of {', '.join(CHROMES)} is on the path")
    with sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield chrome
        chrome.close()


def rewrite(project: Path, changes: dict[str, Any]) -> config.Params:
    """Change params.yaml of `project` and return the new parameters."""
    path = project / "params.yaml"
    path.write_text(yaml.safe_dump(merged(yaml.safe_load(path.read_text()), changes)))
    return config.read(path)
