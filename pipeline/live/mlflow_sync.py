"""MLflow for scheduled forecasts: they fetch the registered model, and send their records to one run a day.

Every call ends after `seconds`, also where the tracker refuses, is silent, or sends a byte now and then. Importing
MLflow and creating its database take some seconds more, but always end.
"""

from __future__ import annotations

import logging
import math
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.atomic import fsync_tree, make_folder, rename
from fieldcast.pipeline.datasets.labels import COLOURS
from fieldcast.pipeline.errors import BusyError, InputError, is_full
from fieldcast.pipeline.tracking.patience import first_line
from fieldcast.pipeline.tracking.records import MODEL_TAG, safe_name
from fieldcast.pipeline.tracking.runs import CHECKPOINT_TAG, experiment_id, open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)
Result = TypeVar("Result")

REQUEST_SECONDS = 5  # MLflow's limit for each request here; it is longer, with retries, for training
BATCH = 1000  # MLflow's limit of metrics and tags in one request
BATCH_TAGS = 100
STALE_SECONDS = 3600  # a download that is older was left by a process that was killed
DAY_TAG, VERSION_TAG = "fieldcast.day", "fieldcast.model_version"
DIGEST = re.compile(r"[0-9a-f]{32}\.dir")
REFUSED = "INVALID_PARAMETER_VALUE"  # sent again, it would be refused again


class TrackerDownError(BusyError):
    """MLflow refuses, fails or is silent: continue without it, and try again later."""


@dataclass(frozen=True)
class Registered:
    """A registered model version whose checkpoint is at hand."""

    version: str
    run_id: str
    folder: Path
    digest: str


@dataclass(frozen=True)
class Record:
    """The record of one cycle for the tracker; `seq` is its number in the sender's ledger."""

    seq: int
    day: str  # of the init time: 2020-10-31
    model: str
    model_version: str
    kind: Literal["cycle", "scores"]
    at: datetime  # the init time
    values: dict[str, float]
    step: int
    tags: dict[str, str]


def fetch_registered(experiment: str, alias: str, into: Path, root: Path = Path(), seconds: float = 10.0) -> Registered:
    """Return the version of the model `experiment` that has `alias`, its checkpoint in `into/<digest>`.

    A checkpoint that is there already is not downloaded again. Raise `InputError` when no version has the alias or its
    checkpoint is not the one that was registered, `TrackerDownError` when that is not known after `seconds`.
    """
    try:
        client = open_client(root)
        return _within(seconds, lambda cancelled: _fetch(client, experiment, alias, into, cancelled))
    except (InputError, TrackerDownError):
        raise
    except Exception as error:  # the tracker may fail in any way
        if is_full(error):
            raise
        raise TrackerDownError(f"MLflow does not answer: {first_line(error)}") from error


def registered_digest(client: MlflowClient, experiment: str, number: str, seconds: float = 30.0) -> str:
    """Return the digest of the bytes of the checkpoint that a version holds; raise as `fetch_registered` does."""

    def read(cancelled: threading.Event) -> str:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "checkpoint"
            _download_checkpoint(client, client.get_model_version(experiment, number), target, cancelled)
            return store.directory_digest(target)

    return _within(seconds, read)


def send_records(experiment: str, records: Sequence[Record], root: Path = Path(), seconds: float = 10.0) -> list[int]:
    """Return the numbers of the records that have arrived in the experiment `<experiment>-forecasts` after `seconds`.

    There is one run a day and model version, with the init time as the time of each value; a record that is sent twice
    adds nothing. Never raises: an error is one line in the log.
    """
    arrived: list[int] = []
    if not records:
        return arrived
    try:
        client = open_client(root)
        sender = _Sender(client, f"{experiment}-forecasts", root, arrived)
        _within(seconds, lambda cancelled: sender.send(records, cancelled))
    except Exception as error:  # the tracker may fail in any way, a cycle must not
        waiting = len(records) - len(arrived)
        log.warning("MLflow does not answer, %d of %d records wait: %s", waiting, len(records), first_line(error))
    return list(arrived)  # a cancelled call may still add to the other list


def _within(seconds: float, call: Callable[[threading.Event], Result]) -> Result:
    """Return `call(cancelled)`; raise `TrackerDownError` after `seconds`, which then sets `cancelled`.

    It runs in a thread that no exit of the process waits for, since a request cannot be broken off.
    """
    cancelled, outcome = threading.Event(), Future[Result]()

    def work() -> None:
        try:
            outcome.set_result(call(cancelled))
        except Exception as error:
            outcome.set_exception(error)

    with _short_timeouts():
        threading.Thread(target=work, name="tracker", daemon=True).start()
        try:
            return outcome.result(timeout=seconds)
        except TimeoutError:
            if outcome.done():  # it is the call's own
                raise
            raise TrackerDownError(f"MLflow does not answer within {seconds:g} s") from None
        finally:
            cancelled.set()


@contextmanager
def _short_timeouts() -> Iterator[None]:
    """Let MLflow's requests fail soon and print nothing; it reads these settings from the environment each time."""
    settings = {
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(REQUEST_SECONDS),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _fetch(client: MlflowClient, experiment: str, alias: str, into: Path, cancelled: threading.Event) -> Registered:
    version = _aliased(client, experiment, alias)
    name, run_id = str(version.version), version.run_id or ""
    expected = _recorded_digest(client, run_id)
    if expected is not None and _holds(into / expected, expected):
        return Registered(name, run_id, into / expected, expected)
    make_folder(into)
    _sweep(into)
    partial = into / f".{uuid.uuid4().hex}.partial"
    try:
        _download_checkpoint(client, version, partial, cancelled)
        digest = store.directory_digest(partial)
        if expected not in (None, digest):
            raise InputError(
                f"version {name} of the model '{experiment}': its checkpoint has digest {digest}, expected {expected} "
                "as its run says: train the model again, or give another version the alias"
            )
        _move_into_place(partial, into / digest)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Registered(name, run_id, into / digest, digest)


def _aliased(client: MlflowClient, experiment: str, alias: str) -> ModelVersion:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(experiment, alias)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", REFUSED):
            raise
        raise InputError(
            f"no version of the model '{experiment}' has the alias '{alias}' in MLflow ({first_line(error)}): set it "
            f"there (Models > {experiment} > a version > Aliases), or name a checkpoint folder such as "
            "data/checkpoints/convlstm"
        ) from None


def _recorded_digest(client: MlflowClient, run_id: str) -> str | None:
    """Return the digest that the training run recorded, if MLflow still has the run."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        digest = client.get_run(run_id).data.tags.get(CHECKPOINT_TAG, "")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return digest if DIGEST.fullmatch(digest) else None


def _download_checkpoint(client: MlflowClient, version: ModelVersion, target: Path, cancelled: threading.Event) -> None:
    """Write the checkpoint of a version to `target`: the folder in the model's `artifacts`, next to its code."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    address = client.get_model_version_download_uri(version.name, version.version)
    model = get_artifact_repository(address, tracking_uri=client.tracking_uri, registry_uri=client.tracking_uri)
    folders = [entry.path for entry in model.list_artifacts("artifacts") if entry.is_dir]
    if len(folders) != 1:
        raise InputError(
            f"version {version.version} of the model '{version.name}' has {len(folders)} folders in "
            f"{address}/artifacts, expected one, the checkpoint that the train stage registers: give such a version "
            "the alias"
        )
    _download(model, folders[0], target, cancelled)


def _download(model: Any, source: str, target: Path, cancelled: threading.Event) -> None:
    target.mkdir()
    for entry in model.list_artifacts(source):
        if cancelled.is_set():
            raise TrackerDownError("cancelled")
        place = target / PurePosixPath(entry.path).name
        if entry.is_dir:
            _download(model, entry.path, place, cancelled)
        else:  # file by file: MLflow's own download of folders has threads that would hold up the process's exit
            model._download_file(entry.path, str(place))


def _move_into_place(partial: Path, target: Path) -> None:
    fsync_tree(partial)
    if _holds(target, target.name):  # another process was first
        return
    shutil.rmtree(target, ignore_errors=True)  # damaged
    rename(partial, target)


def _holds(folder: Path, digest: str) -> bool:
    return folder.is_dir() and store.directory_digest(folder) == digest


def _sweep(into: Path) -> None:
    for left in into.glob(".*.partial"):
        if time.time() - left.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(left, ignore_errors=True)


class _Sender:
    """A sender of records that keeps the numbers of those that have arrived."""

    def __init__(self, client: MlflowClient, experiment: str, root: Path, arrived: list[int]) -> None:
        self.client, self.experiment, self.root, self.arrived = client, experiment, root, arrived

    def send(self, records: Sequence[Record], cancelled: threading.Event) -> None:
        identity = experiment_id(self.client, self.experiment, self.root)
        for group in _by_run(records):
            run_id = self._run(identity, group[0])
            for batch in _batches(group):
                if cancelled.is_set():
                    return
                self._log(run_id, batch)

    def _log(self, run_id: str, batch: Sequence[Record]) -> None:
        """Send some records of one run; where MLflow refuses one for its content, the others are sent without it."""
        from mlflow.entities import Metric, RunTag
        from mlflow.exceptions import MlflowException

        metrics = [
            Metric(safe_name(key), float(value), _milliseconds(record.at), record.step)
            for record in batch
            for key, value in record.values.items()
            if math.isfinite(value)
        ]
        tags = {key: value for record in batch for key, value in record.tags.items()}
        try:
            self.client.log_batch(run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])
        except MlflowException as error:
            if error.error_code != REFUSED:
                raise
            if len(batch) > 1:
                for record in batch:
                    self._log(run_id, [record])
            else:
                log.warning("MLflow refuses record %d: %s", batch[0].seq, first_line(error))
        else:
            self.arrived.extend(record.seq for record in batch)

    def _run(self, identity: str, record: Record) -> str:
        """Return the run of the record's day and model version, which is marked as finished from the first."""
        query = f"tags.`{DAY_TAG}` = '{record.day}' and tags.`{VERSION_TAG}` = '{record.model_version}'"
        runs = self.client.search_runs([identity], query, max_results=1)
        start = datetime.fromisoformat(record.day).replace(tzinfo=UTC)
        if runs:
            run = runs[0]
        else:
            colour = {"mlflow.runColor": COLOURS[record.model]} if record.model in COLOURS else {}
            tags = {DAY_TAG: record.day, VERSION_TAG: record.model_version, MODEL_TAG: record.model, **colour}
            name = f"{record.day} {record.model}"
            run = self.client.create_run(identity, start_time=_milliseconds(start), run_name=name, tags=tags)
        if run.info.status != "FINISHED":
            end = _milliseconds(start + timedelta(days=1))
            self.client.set_terminated(run.info.run_id, "FINISHED", end)
        return str(run.info.run_id)


def _by_run(records: Sequence[Record]) -> list[list[Record]]:
    """Return the records of each run, in their order; one run's values do not depend on another's."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.day, record.model_version), []).append(record)
    return list(groups.values())


def _batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Yield the records in as few batches as MLflow's limits allow."""
    batch: list[Record] = []
    for record in records:
        if batch and not _fits([*batch, record]):
            yield batch
            batch = []
        batch.append(record)
    yield batch


def _fits(batch: Sequence[Record]) -> bool:
    tags = sum(len(record.tags) for record in batch)
    return tags <= BATCH_TAGS and tags + sum(len(record.values) for record in batch) <= BATCH


def _milliseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
