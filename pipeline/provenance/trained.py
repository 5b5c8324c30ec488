"""Checkpoints and their MLflow runs: digests computed again from the bytes that are kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import BusyError, TrackerError, UserError, redacted
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig, read_checkpoint
from fieldcast.pipeline.live import mlflow_sync
from fieldcast.pipeline.live.deployed_model import FETCHED, named_versions
from fieldcast.pipeline.provenance.link import BrokenError, UncheckedError
from fieldcast.pipeline.tracking.patience import first_line, tracking_uri
from fieldcast.pipeline.tracking.registry import Registry, TrainedRun

Answer = TypeVar("Answer")
SQLITE = "sqlite:///"


def registry_of(experiment: str, root: Path) -> Registry:
    """Return MLflow's records; raise `UncheckedError` where there are none, and make no database."""
    database = Path(tracking_uri(root).removeprefix(SQLITE))
    if tracking_uri(root).startswith(SQLITE) and not database.is_file():
        raise UncheckedError(f"MLflow's {database} is not there: MLFLOW_TRACKING_URI says where it is")
    return _answer(lambda: Registry(experiment, root))


def digest_of_version(version: str, folder: Path, experiment: str, root: Path) -> str:
    """Return the digest of the checkpoint that a version in the registry, such as 'storms/3', is.

    Where MLflow does not answer, the live folder knows those that an alias has named.
    """
    number = version.rpartition("/")[2]
    known = {facts["digest"] for facts in named_versions(folder).values() if facts["version"] == number}
    try:
        told = _answer(lambda: registry_of(experiment, root).version(number).checkpoint)
    except (UncheckedError, TrackerError):
        if len(known) == 1:
            return known.pop()
        raise
    if known and told not in known:
        raise BrokenError(f"MLflow says that {version} is checkpoint {told}, and {folder / FETCHED} {known.pop()}")
    return told


def check_checkpoint(digest: str, own: list[Path], others: list[Path]) -> tuple[str, CheckpointConfig]:
    """Return what the checkpoint with this digest is, read from the first folder that has it.

    Raise `BrokenError` where one of its `own` folders is damaged.
    """
    present = [place for place in own if place.is_dir()]
    for place in [*present, *others]:
        if store.directory_digest(place) == digest:
            return f"{place}, digest {digest}", read_checkpoint(place).config
    for place in present:
        try:
            read_checkpoint(place)
        except UserError as error:
            raise BrokenError(str(error)) from error
    where = f"; {present[0]} is another training" if present else ""
    raise UncheckedError(f"checkpoint {digest} is not here{where}: git checkout its commit, then dvc checkout")


def find_run(digest: str, experiment: str, root: Path) -> TrainedRun:
    """Return the run that wrote a checkpoint; raise `BrokenError` where MLflow has none."""
    run = _answer(lambda: registry_of(experiment, root).trained(digest))
    if run is None:
        raise BrokenError(f"MLflow's experiment '{experiment}' has no run of checkpoint {digest}")
    return run


def check_registered(digest: str, version: str, experiment: str, root: Path) -> str:
    """Return what has been compared; raise `BrokenError` where MLflow's copy of a checkpoint has another digest."""
    registry = registry_of(experiment, root)
    newest = _answer(lambda: registry.version_of_checkpoint(digest))
    if newest is None:
        return "its checkpoint is not registered"
    number = version.rpartition("/")[2] if "/" in version else newest.number
    found = _answer(lambda: mlflow_sync.registered_digest(registry.client, experiment, number))
    if found != digest:
        raise BrokenError(f"version {number} of '{experiment}' has a checkpoint with digest {found}, expected {digest}")
    return f"version {number} of '{experiment}' has the same bytes"


def _answer(question: Callable[[], Answer]) -> Answer:
    """Return MLflow's answer; raise `BrokenError` where it finds its own records damaged."""
    try:
        return question()
    except (UncheckedError, BrokenError, TrackerError, BusyError):
        raise
    except Exception as error:  # a damaged database may raise anything
        raise BrokenError(f"MLflow: {redacted(first_line(error))}") from error
