"""Records that MLflow could not take, kept on disk until it can: a file of JSON lines for each run, never rewritten.

The first line of a file names the run; each other is a record, whose time is that of the event. `deliver` sends them in
order and notes how far it came; a record that is sent twice adds nothing. Files are copied when they are kept.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldcast.pipeline.datasets.store import directory_digest, file_digest
from fieldcast.pipeline.errors import TrackerError
from fieldcast.pipeline.tracking import patience
from fieldcast.pipeline.tracking.patience import RefusedError, ask
from fieldcast.pipeline.tracking.records import OF_FILES, Record, has_already, send

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILES = "files"


@dataclass(frozen=True)
class Address:
    """A run: the experiment, the model, the digest of its checkpoint or training, and its id if it has one."""

    experiment: str
    model: str
    checkpoint: str
    run_id: str | None = None
    started: int = 0  # milliseconds since 1970


@dataclass(frozen=True)
class Delivery:
    """What became of the records in an outbox."""

    sent: int = 0
    refused: tuple[str, ...] = ()  # what MLflow said of those that it does not take
    left: int = 0


def keep(address: Address, record: Record, folder: Path) -> None:
    """Append a record to the file of its run, and copy the file that goes with it."""
    _make(folder)
    stored = None if record.path is None else _store(record.path, folder)
    with _locked(folder):
        path = folder / f"{_name(address)}.jsonl"
        lines = [] if path.exists() else [address.__dict__]
        lines.append({"kind": record.kind, "content": record.content, "path": stored})
        _append(path, "".join(json.dumps(line) + "\n" for line in lines).encode())


def tags(address: Address, folder: Path) -> dict[str, str]:
    """Return the tags of a run that wait."""
    path = folder / f"{_name(address)}.jsonl"
    lines = _lines(path)[1:] if path.exists() else []
    return {key: value for line in lines if line["kind"] == "tags" for key, value in line["content"].items()}


def pending(folder: Path) -> int:
    """Return how many records wait in an outbox."""
    return sum(max(len(_lines(path)) - 1 - _sent(path), 0) for path in folder.glob("*.jsonl"))


def deliver(client: MlflowClient, find: Callable[[Address, list[str]], str], folder: Path) -> Delivery:
    """Send what waits, run by run, until MLflow does not answer; return what became of it.

    `find(address, checkpoints)` returns the id of the run, which it makes where there is none.
    """
    sent, refused = 0, list[str]()
    try:
        for path in sorted(folder.glob("*.jsonl")):
            for said in _deliver_run(client, find, path):
                sent += said is None
                refused += [said] if said else []
            _finish(path)
    except TrackerError:
        patience.mark_down()
    return Delivery(sent, tuple(refused), pending(folder))


def _deliver_run(client: MlflowClient, find: Callable[[Address, list[str]], str], path: Path) -> Iterator[str | None]:
    """Send the records of one run; yield None for each that arrives, else what MLflow said of it."""
    head, *lines = _lines(path)
    address = Address(**head)
    tags = [line["content"] for line in lines if line["kind"] == "tags"]
    checkpoints = [value for content in tags for key, value in content.items() if key.endswith(".checkpoint")]
    run_id = ask(lambda: find(address, [address.checkpoint, *checkpoints]))
    passed_over = False  # what the run has already, up to its end
    for index, line in enumerate(lines[_sent(path) :], _sent(path)):
        stored = None if line["path"] is None else path.parent / line["path"]
        record = Record(line["kind"], line["content"], stored)
        said = None
        if record.kind == "once":
            passed_over = ask(partial(has_already, client, run_id, record))
        try:
            if not passed_over:
                run_id = ask(partial(send, client, run_id, address.experiment, record), seconds_for(record))
        except RefusedError as error:
            said = str(error)
        passed_over = passed_over and record.kind != "end"
        _progress(path).write_text(str(index + 1))
        yield said


def seconds_for(record: Record) -> float:
    """Return how long the answer to a record may take."""
    return patience.FILE_SECONDS if record.kind in OF_FILES else patience.RECORD_SECONDS


def _name(address: Address) -> str:
    return hashlib.sha256(f"{address.experiment} {address.checkpoint}".encode()).hexdigest()[:16]


def _finish(path: Path) -> None:
    """Remove a file whose records have all been sent, and the copies that no other needs."""
    folder = path.parent
    with _locked(folder):
        if len(_lines(path)) - 1 > _sent(path):  # one was added meanwhile
            return
        path.unlink()
        _progress(path).unlink(missing_ok=True)
        needed = {str(line.get("path")) for other in folder.glob("*.jsonl") for line in _lines(other)}
        for copy in (folder / FILES).glob("*/*"):
            if copy.relative_to(folder).as_posix() not in needed:
                shutil.rmtree(copy.parent)


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; a last one that a kill has torn counts as never written."""
    lines = []
    for line in path.read_bytes().splitlines():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def _sent(path: Path) -> int:
    try:
        return int(_progress(path).read_text())
    except (FileNotFoundError, ValueError):
        return 0  # all again: nothing is added twice


def _progress(path: Path) -> Path:
    return path.with_suffix(".sent")


def _store(path: Path, folder: Path) -> str:
    """Return the place of a copy in the outbox, one for each content."""
    digest = directory_digest(path) if path.is_dir() else file_digest(path)
    copy = folder / FILES / digest / path.name
    if not copy.exists():
        partial = copy.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, partial)
        else:
            shutil.copyfile(path, partial)
        partial.rename(copy)
    return copy.relative_to(folder).as_posix()


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def _append(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):  # torn by a kill
            content = b"\n" + content
        os.write(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
