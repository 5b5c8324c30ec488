"""Records of training, verification and comparison in MLflow; a tracker that is down costs a warning and no work."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from fieldcast import models
from fieldcast.pipeline.datasets.atomic import partial_of
from fieldcast.pipeline.datasets.labels import COLOURS
from fieldcast.pipeline.errors import TrackerError, redacted
from fieldcast.pipeline.tracking import moved, outbox, patience
from fieldcast.pipeline.tracking.patience import AccessError, RefusedError, tracking_uri
from fieldcast.pipeline.tracking.records import MODEL_TAG, Record, image_record, metric_records, send

if TYPE_CHECKING:
    from mlflow import MlflowClient

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}.items():
    os.environ.setdefault(_name, _value)

log = logging.getLogger(__name__)
Result = TypeVar("Result")

DATABASE = "mlflow.db"
CHECKPOINT_TAG = "fieldcast.checkpoint"
PROCESS_TAG = "fieldcast.process"  # host:process that made the run
KIND_TAG = "kind"
SCORES_FOLDER, COSTS_FILE = "scores", "costs.json"  # artefacts from which runs are compared again
LEAD_SCORES = ("rmse", "mae", "mean_error", "csi")  # looked at first; the others have a section of their own
IMPORT_SECONDS = 60.0  # that importing MLflow may take, before a server is asked
WAITING = "the work goes on, and `fieldcast sync` sends the records later"


class Run:
    """One MLflow run: a model's training, scores and checkpoint. No call fails where the tracker does.

    What the tracker does not take waits in the outbox. Without an address nothing is recorded: one of several training
    processes keeps the records.
    """

    def __init__(self, client: MlflowClient | None, run_id: str | None, experiment: str) -> None:
        self.client, self.run_id, self.experiment = client, run_id, experiment
        self.address: outbox.Address | None = None
        self.open = False  # begun by this process, and not ended

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._record(Record("tags", {key: redacted(value) for key, value in values.items()}))

    def tag(self, key: str) -> str | None:
        """Return a tag, None where the run lacks it; where the tracker does not answer, of the records that wait."""
        tags: dict[str, str] = self._try(lambda client, run_id: client.get_run(run_id).data.tags) or {}
        if self.client is None and self.address is not None:
            tags = outbox.tags(self.address, patience.OUTBOX)
        return tags.get(key)

    def begin(self, tag: str, digest: str, *, renew: bool = False) -> bool:
        """Return whether the run lacks what `tag` with this digest stands for: what follows up to `end`.

        With `renew` a run that has it of another digest is replaced by a new one without.
        """
        if self.tag(tag) == digest:
            return False
        self._record(Record("once", {"tag": tag, "digest": digest, "renew": renew}))
        return True

    def params(self, values: Mapping[str, Any]) -> None:
        """Log the parameters that identify the run; the whole of `params.yaml` is an artefact."""
        self._record(Record("params", {key: redacted(str(value))[:6000] for key, value in values.items()}))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log one value a metric at `step`; values that are not finite are left out."""
        at = _now()
        self._rows((key, float(value), at, step) for key, value in values.items())

    def curves(self, prefix: str, scores: Mapping[str, Mapping[float, float]]) -> None:
        """Log scores as `prefix/score` with step = lead time in minutes, in seconds where one is no whole minute."""
        at, whole = _now(), all(lead == int(lead) for curve in scores.values() for lead in curve)
        self._rows(
            (f"{prefix}/{score}", float(value), at, int(lead) if whole else round(60 * lead))
            for score, curve in scores.items()
            for lead, value in curve.items()
        )

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """Log an image (h, w, 3) uint8 under `key`; the comparison of runs shows images of one key side by side."""
        self._record(image_record(key, image, _now(), step))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file or all files of a folder."""
        if path.exists():
            self._record(Record("artifact", {"folder": folder}, path))

    def text(self, path: Path) -> None:
        """Log a text file under its name, without the secrets that may stand in it."""
        if path.exists():
            self._record(Record("text", {"name": path.name, "text": redacted(path.read_text("utf-8"))}))

    def dataset(self, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Log the prepared data as the run's training input, under its DVC digest."""
        self._record(Record("dataset", {"digest": digest, "source": source, "profile": profile}))

    def register(self, checkpoint: Path, kind: str) -> None:
        """Log the checkpoint as a model that loads without pickle: a new version under the experiment's name."""
        content = {"model": checkpoint.name, "needs_pysteps": kind in models.NEEDS_PYSTEPS}
        self._record(Record("register", content, checkpoint))

    def page(self) -> str:
        """Return the address of this run's page on a server; of a local database the run's id, which `ui` finds."""
        if self.client is None or self.run_id is None:
            return ""
        uri = redacted(str(self.client.tracking_uri))
        if not uri.startswith("http"):
            return f"run {self.run_id}"
        identity = self._try(lambda client, run_id: client.get_run(run_id).info.experiment_id)
        return "" if identity is None else f"{uri.rstrip('/')}/#/experiments/{identity}/runs/{self.run_id}"

    def end(self, status: str = "FINISHED") -> None:
        """Close the run."""
        self.open = False
        self._record(Record("end", {"status": status, "at": _now()}))

    def abandon(self, error: BaseException) -> None:
        """Close a run that is still open: as failed by an error, or as killed by a signal."""
        if self.open:
            self.end("FAILED" if isinstance(error, Exception) else "KILLED")

    def _rows(self, rows: Iterable[tuple[str, float, int, int]]) -> None:
        for record in metric_records(row for row in rows if math.isfinite(row[1])):
            self._record(record)

    def _record(self, record: Record) -> None:
        """Send a record; keep it where MLflow does not answer."""
        if self.client is not None and self.run_id is not None:
            seconds = outbox.seconds_for(record)
            sent = self._try(lambda client, run_id: send(client, run_id, self.experiment, record), seconds)
            self.run_id = sent or self.run_id
        if self.client is None and self.address is not None:
            outbox.keep(self.address, record, patience.OUTBOX)

    def _try(
        self, call: Callable[[MlflowClient, str], Result], seconds: float = patience.RECORD_SECONDS
    ) -> Result | None:
        client, run_id = self.client, self.run_id
        if client is None or run_id is None:
            return None
        try:
            return patience.ask(lambda: call(client, run_id), seconds)
        except RefusedError as error:
            log.warning("%s", error)
        except Exception as error:  # the tracker may fail in any way, training must not
            patience.mark_down()
            log.warning("%s; %s", error, WAITING)
            self.client = None
        return None


def open_run(
    experiment: str, model: str, checkpoint: str, stage: str, root: Path = Path(), *, run_id: str | None = None
) -> Run:
    """Return the run `run_id` if the tracker has it, else the newest of this checkpoint, else a new one.

    `checkpoint` is the digest of the checkpoint folder, or the fingerprint of the training that will write it. Runs of
    processes that were killed on this machine end as such.
    """
    run = Run(None, run_id, experiment)
    if not patience.is_down():
        try:
            client = patience.ask(lambda: open_client(root), IMPORT_SECONDS)
            known = patience.ask(lambda: _known_run(client, experiment, checkpoint, run_id))
            patience.ask(lambda: _end_killed(client, experiment, known))
            chosen = known or patience.ask(lambda: _create(client, experiment, model, checkpoint, root))
            run = Run(client, chosen, experiment)
            run.open = known is None
        except Exception as error:
            patience.mark_down()
            log.warning("%s; %s of %s", error, WAITING, model)
    run.address = outbox.Address(experiment, model, checkpoint, run.run_id, _now())
    run.tags({"dvc.stage": os.environ.get("DVC_STAGE", stage), **_dvc_experiment()})
    return run


def deliver(root: Path = Path()) -> outbox.Delivery:
    """Send MLflow the records that wait, as long as it answers, and return what became of them."""
    client = patience.ask(lambda: open_client(root), IMPORT_SECONDS)
    delivery = outbox.deliver(client, lambda address, known: _of_address(client, address, known, root), patience.OUTBOX)
    for said in delivery.refused:
        log.warning("%s", said)
    return delivery


def runs_of(experiment: str, models: Mapping[str, str]) -> dict[str, Run]:
    """Return the run of each model, by name, from the digests of their checkpoint folders.

    Records that wait are sent first. Where the tracker does not answer for one of them, it is not asked for the others.
    """
    if not patience.is_down() and outbox.pending(patience.OUTBOX):
        with contextlib.suppress(TrackerError):
            deliver()
    return {model: open_run(experiment, model, digest, "compare") for model, digest in models.items()}


def experiment_url(base: str, experiment: str, root: Path = Path()) -> str:
    """Return the address of the page that compares all runs of `experiment` as charts."""
    found = open_client(root).get_experiment_by_name(experiment)
    page = f"#/experiments/{found.experiment_id}/runs" if found else "#/experiments"
    return f"{base}/{page}?workflowType=machine_learning&compareRunsMode=CHART"


def open_client(root: Path) -> MlflowClient:
    """Return MLflow's client for `tracking_uri`: a server is not contacted yet, a missing database is created."""
    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking", "mlflow.store.model_registry"):
        logging.getLogger(name).setLevel(logging.WARNING)  # else they log every table and version
    uri, database = tracking_uri(root), root.resolve() / DATABASE
    if uri == f"sqlite:///{database}":
        if not database.exists():
            _make_database(database)
        moved.follow(database, root.resolve())
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, name: str, root: Path) -> str:
    """Return the id of the experiment `name`; create it where there is none, with artefacts in the project's folder."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None and found.lifecycle_stage == "deleted":
        raise AccessError(
            f"the experiment '{name}' is deleted in MLflow: restore it (mlflow experiments restore -x "
            f"{found.experiment_id}), or change track.experiment"
        )
    if found is not None:
        return str(found.experiment_id)
    local = tracking_uri(root).startswith("sqlite")
    place = (root.resolve() / moved.ARTEFACTS / name).as_uri() if local else None
    try:
        return str(client.create_experiment(name, place, {"mlflow.experimentKind": "custom_model_development"}))
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)  # another process was first


def _make_database(path: Path) -> None:
    """Create MLflow's database whole or not at all: it takes seconds, several may begin at once, one may be killed."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path, os.getpid())
    partial.unlink(missing_ok=True)
    try:
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
        partial.chmod(0o600)
        path.hardlink_to(partial)
    except FileExistsError:  # another process was first
        pass
    except PermissionError:  # a file system without hard links
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _known_run(client: MlflowClient, experiment: str, checkpoint: str, run_id: str | None) -> str | None:
    return run_id if run_id and _knows(client, run_id) else _find(client, experiment, checkpoint)


def _of_address(client: MlflowClient, address: outbox.Address, checkpoints: Sequence[str], root: Path) -> str:
    """Return the id of the run that an address names, by any of its checkpoints; make it where there is none."""
    for checkpoint in checkpoints:
        if known := _known_run(client, address.experiment, checkpoint, address.run_id):
            return known
    return _create(client, address.experiment, address.model, address.checkpoint, root, address.started)


def _end_killed(client: MlflowClient, experiment: str, going_on: str | None) -> None:
    """End the runs whose process on this machine is gone, but the one that goes on."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return
    for run in client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'"):
        host, _, process = run.data.tags.get(PROCESS_TAG, "").partition(":")
        gone = host == socket.gethostname() and process.isdecimal() and not Path(f"/proc/{process}").exists()
        if gone and Path("/proc").exists() and run.info.run_id != going_on:
            client.set_terminated(run.info.run_id, "KILLED")


def _knows(client: MlflowClient, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return False
        raise


def _find(client: MlflowClient, experiment: str, checkpoint: str) -> str | None:
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return None
    chosen = f"tags.`{CHECKPOINT_TAG}` = '{checkpoint}'"
    runs = client.search_runs([found.experiment_id], chosen, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0].info.run_id if runs else None


def _create(
    client: MlflowClient, experiment: str, model: str, checkpoint: str, root: Path, started: int | None = None
) -> str:
    identity = experiment_id(client, experiment, root)
    colour = {"mlflow.runColor": COLOURS[model]} if model in COLOURS else {}
    process = {PROCESS_TAG: f"{socket.gethostname()}:{os.getpid()}"}
    commit = git_commit(root)
    tags = {MODEL_TAG: model, CHECKPOINT_TAG: checkpoint, **process, **colour}
    tags |= {"mlflow.source.git.commit": commit} if commit else {}
    return str(client.create_run(identity, started, tags, model).info.run_id)


def git_commit(root: Path) -> str:
    """Return the commit that is checked out around `root`; '' outside of a repository and before its first commit."""
    from git import InvalidGitRepositoryError, Repo

    try:
        return str(Repo(root, search_parent_directories=True).head.commit.hexsha)
    except (InvalidGitRepositoryError, ValueError):  # not a repository, or one without a commit
        return ""


def _dvc_experiment() -> dict[str, str]:
    names = {"dvc.exp_name": "DVC_EXP_NAME", "dvc.baseline_rev": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[variable] for tag, variable in names.items() if variable in os.environ}


def _now() -> int:
    """Return the time in milliseconds since 1970, as MLflow has it."""
    return time.time_ns() // 1_000_000
