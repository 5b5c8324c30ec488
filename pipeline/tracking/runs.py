"""Records of training, verification and comparison in MLflow; a tracker that is down costs a warning and no work."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import fieldcast
from fieldcast import models
from fieldcast.pipeline.datasets.atomic import partial_of
from fieldcast.pipeline.datasets.labels import COLOURS
from fieldcast.pipeline.errors import redacted

if TYPE_CHECKING:
    from mlflow import MlflowClient

for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}.items():
    os.environ.setdefault(_name, _value)

log = logging.getLogger(__name__)
Result = TypeVar("Result")

DATABASE = "mlflow.db"
CHECKPOINT_TAG = "fieldcast.checkpoint"
MODEL_TAG, KIND_TAG = "model", "kind"
SCORES_FOLDER, COSTS_FILE = "scores", "costs.json"  # artefacts from which runs are compared again
LEAD_SCORES = ("rmse", "mae", "mean_error", "csi")  # looked at first; the others have a section of their own
SERVED = Path(__file__).with_name("pyfunc.py")
REQUIREMENTS = ["torch", "numpy", "xarray", "einops", "jaxtyping", "safetensors", "pydantic", "mlflow"]
PYSTEPS_REQUIREMENTS = ["pysteps", "opencv-python-headless"]


def tracking_uri(root: Path) -> str:
    """Return `MLFLOW_TRACKING_URI`, or the sqlite file in the project's folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / DATABASE}"


class Run:
    """One MLflow run: a model's training, scores and checkpoint. No call fails where the tracker does."""

    def __init__(self, client: MlflowClient | None, run_id: str | None, experiment: str) -> None:
        self.client, self.run_id, self.experiment = client, run_id, experiment

    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags."""
        self._try(lambda client, run_id: [client.set_tag(run_id, key, value) for key, value in values.items()])

    def tag(self, key: str) -> str | None:
        """Return a tag, None where the run lacks it or the tracker does not answer."""
        tags: dict[str, str] = self._try(lambda client, run_id: client.get_run(run_id).data.tags) or {}
        return tags.get(key)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log the parameters that identify the run; the whole of `params.yaml` is an artefact."""
        from mlflow.entities import Param

        params = [Param(key, redacted(str(value))[:6000]) for key, value in values.items()]
        self._try(lambda client, run_id: client.log_batch(run_id, params=params))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log one value a metric at `step`; values that are not finite are left out."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        rows = [Metric(key, float(value), now, step) for key, value in values.items() if math.isfinite(value)]
        self._try(lambda client, run_id: client.log_batch(run_id, metrics=rows))

    def curves(self, prefix: str, scores: Mapping[str, Mapping[int, float]]) -> None:
        """Log scores as `prefix/score` with step = lead time in minutes."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        rows = [
            Metric(f"{prefix}/{score}", float(value), now, int(lead))
            for score, curve in scores.items()
            for lead, value in curve.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(rows), 1000):  # MLflow's limit for one batch
            self._try(lambda client, run_id, s=start: client.log_batch(run_id, metrics=rows[s : s + 1000]))  # type: ignore[misc]

    def image(self, key: str, image: np.ndarray, step: int) -> None:
        """Log an image (h, w, 3) uint8 under `key`; the comparison of runs shows images of one key side by side."""
        self._try(lambda client, run_id: client.log_image(run_id, image, key=key, step=step))

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file or all files of a folder."""
        if path.is_dir():
            self._try(lambda client, run_id: client.log_artifacts(run_id, str(path), folder))
        elif path.exists():
            self._try(lambda client, run_id: client.log_artifact(run_id, str(path), folder))

    def text(self, path: Path) -> None:
        """Log a text file under its name, without the secrets that may stand in it."""
        if path.exists():
            content = redacted(path.read_text("utf-8"))
            self._try(lambda client, run_id: client.log_text(run_id, content, path.name))

    def dataset(self, digest: str, source: str, profile: Mapping[str, Any]) -> None:
        """Log the prepared data as the run's training input, under its DVC digest."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=self.experiment,
            digest=digest,
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps(profile),
        )
        inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
        self._try(lambda client, run_id: client.log_inputs(run_id, datasets=inputs))

    def register(self, checkpoint: Path, kind: str, channels_in: int, history: int) -> None:
        """Log the checkpoint as a model that loads without pickle: a new version under the experiment's name."""
        self._try(lambda client, run_id: self._register(run_id, checkpoint, kind, channels_in, history))

    def url(self, base: str) -> str | None:
        """Return the address of this run's page in the tracker, at `base` where that is a local database."""
        if self.client is None or self.run_id is None:
            return None
        uri = redacted(str(self.client.tracking_uri))
        place = uri.rstrip("/") if uri.startswith("http") else base
        identity = self._try(lambda client, run_id: client.get_run(run_id).info.experiment_id)
        return None if identity is None else f"{place}/#/experiments/{identity}/runs/{self.run_id}"

    def end(self, status: str = "FINISHED") -> None:
        """Close the run."""
        self._try(lambda client, run_id: client.set_terminated(run_id, status))

    def _try(self, call: Callable[[MlflowClient, str], Result]) -> Result | None:
        if self.client is None or self.run_id is None:
            return None
        try:
            return call(self.client, self.run_id)
        except Exception as error:  # the tracker may fail in any way, training must not
            log.warning("MLflow does not answer, this run goes on untracked: %s", first_line(error))
            self.client = None
            return None

    def _register(self, run_id: str, checkpoint: Path, kind: str, channels_in: int, history: int) -> None:
        import mlflow
        from mlflow.models import ModelSignature
        from mlflow.types import Schema, TensorSpec

        mlflow.set_tracking_uri(self.client.tracking_uri)  # type: ignore[union-attr]
        inputs = [
            TensorSpec(np.dtype("float32"), (-1, history, channels_in, -1, -1), "history"),
            TensorSpec(np.dtype("int64"), (-1,), "init_time"),
        ]
        outputs = [TensorSpec(np.dtype("float32"), (-1, -1, -1, -1, -1))]
        package = Path(fieldcast.__file__).parent
        quiet = contextlib.redirect_stderr(io.StringIO())  # MLflow prints a line for every version
        with mlflow.start_run(run_id=run_id), warnings.catch_warnings(), quiet:
            warnings.filterwarnings("ignore", ".*input example was not provided.*")  # the signature is written out
            warnings.filterwarnings("ignore", ".*[Tt]ype hint.*")
            mlflow.pyfunc.log_model(
                name="checkpoint",
                python_model=str(SERVED),
                artifacts={"checkpoint": str(checkpoint)},
                signature=ModelSignature(Schema(inputs), Schema(outputs)),  # type: ignore[arg-type]
                code_paths=[str(package)],
                pip_requirements=REQUIREMENTS + (PYSTEPS_REQUIREMENTS if kind in models.NEEDS_PYSTEPS else []),
                registered_model_name=self.experiment,
                tags={MODEL_TAG: checkpoint.name},
            )


def open_run(
    experiment: str, model: str, checkpoint: str, stage: str, root: Path = Path(), *, run_id: str | None = None
) -> Run:
    """Return the run `run_id` if the tracker has it, else the newest of this checkpoint, else a new one.

    `checkpoint` is the digest of the checkpoint folder, or the fingerprint of the training that will write it.
    """
    try:
        client = open_client(root)
        known = run_id if run_id and _knows(client, run_id) else _find(client, experiment, checkpoint)
        chosen = known or _create(client, experiment, model, checkpoint, root)
        run = Run(client, chosen, experiment)
    except Exception as error:
        log.warning("MLflow does not answer, %s goes on untracked: %s", model, first_line(error))
        return Run(None, None, experiment)
    run.tags({"dvc.stage": os.environ.get("DVC_STAGE", stage), **_dvc_experiment()})
    return run


def runs_of(experiment: str, models: Mapping[str, str]) -> dict[str, Run]:
    """Return the run of each model, by name, from the digests of their checkpoint folders.

    Where the tracker does not answer for one of them, the others are not asked for.
    """
    runs: dict[str, Run] = {}
    for model, digest in models.items():
        silent = any(run.client is None for run in runs.values())
        runs[model] = Run(None, None, experiment) if silent else open_run(experiment, model, digest, "compare")
    return runs


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
    if uri == f"sqlite:///{database}" and not database.exists():
        _make_database(database)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def experiment_id(client: MlflowClient, name: str, root: Path) -> str:
    """Return the id of the experiment `name`; create it where there is none, with artefacts in the project's folder."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is not None:
        return str(found.experiment_id)
    local = tracking_uri(root).startswith("sqlite")
    place = (root.resolve() / "mlartifacts" / name).as_uri() if local else None
    try:
        return str(client.create_experiment(name, place, {"mlflow.experimentKind": "custom_model_development"}))
    except MlflowException:
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)  # another process was first


def first_line(error: BaseException) -> str:
    """Return the first line of an error, short enough for a log, and without a password in an address."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return redacted(line)[:200]


def _make_database(path: Path) -> None:
    """Create MLflow's database whole or not at all: it takes seconds, several may begin at once, one may be killed."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = partial_of(path, os.getpid())
    partial.unlink(missing_ok=True)
    try:
        MlflowClient(tracking_uri=f"sqlite:///{partial}").search_experiments()
        path.hardlink_to(partial)
    except FileExistsError:  # another process was first
        pass
    except PermissionError:  # a file system without hard links
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


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


def _create(client: MlflowClient, experiment: str, model: str, checkpoint: str, root: Path) -> str:
    identity = experiment_id(client, experiment, root)
    colour = {"mlflow.runColor": COLOURS[model]} if model in COLOURS else {}
    tags = {MODEL_TAG: model, CHECKPOINT_TAG: checkpoint, **colour, **_git_commit(root)}
    return str(client.create_run(identity, run_name=model, tags=tags).info.run_id)


def _git_commit(root: Path) -> dict[str, str]:
    from git import InvalidGitRepositoryError, Repo

    try:
        return {"mlflow.source.git.commit": Repo(root, search_parent_directories=True).head.commit.hexsha}
    except (InvalidGitRepositoryError, ValueError):  # not a repository, or one without a commit
        return {}


def _dvc_experiment() -> dict[str, str]:
    names = {"dvc.exp_name": "DVC_EXP_NAME", "dvc.baseline_rev": "DVC_EXP_BASELINE_REV"}
    return {tag: os.environ[variable] for tag, variable in names.items() if variable in os.environ}
