"""Records of a run as plain data: sent to MLflow now, or kept as lines of JSON and sent later."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import fieldcast

if TYPE_CHECKING:
    from mlflow import MlflowClient

Kind = Literal["once", "tags", "params", "metrics", "image", "artifact", "text", "dataset", "register", "end"]
OF_FILES = ("once", "image", "artifact", "text", "register")
MODEL_TAG = "model"
SCORES_TAG, COMPARISON_TAG = "fieldcast.scores", "fieldcast.comparison"  # digests of what a run has of them
OF_SCORES_TAGS = (SCORES_TAG, COMPARISON_TAG)
OF_SCORES = ("lead/", "lead_more/", "test/", "spent/")  # metrics
FILES_OF_SCORES = ("scores", "comparison", "images")
BATCH = 1000  # MLflow's limit of metrics in one request
NAMED = {"%": " percent", "+": ""}
SERVED = Path(__file__).with_name("pyfunc.py")
REQUIREMENTS = ["torch", "numpy", "xarray", "einops", "jaxtyping", "safetensors", "pydantic", "mlflow"]
PYSTEPS_REQUIREMENTS = ["pysteps", "opencv-python-headless"]


@dataclass(frozen=True)
class Record:
    """One record: what it is, its content as JSON can hold it, and the file or folder that goes with it."""

    kind: Kind
    content: dict[str, Any]
    path: Path | None = None


def safe_name(name: str) -> str:
    """Return a name that MLflow takes: `rain%` is `rain percent`, `T(2m)` is `T_2m_`, `csi_1e+06` is `csi_1e06`."""
    for sign, word in NAMED.items():
        name = name.replace(sign, word)
    parts = [re.sub(r"[^\w.\- ]", "_", part, flags=re.ASCII) for part in name.split("/")]
    return "/".join(part if part.strip(".") else f"_{part}" for part in parts if part)[:250] or "_"


def metric_records(rows: Iterable[tuple[str, float, int, int]]) -> list[Record]:
    """Return the rows (name, value, milliseconds since 1970, step) as records within MLflow's limit."""
    safe = [[safe_name(name), float(value), at, int(step)] for name, value, at, step in rows]
    return [Record("metrics", {"rows": safe[start : start + BATCH]}) for start in range(0, len(safe), BATCH)]


def image_record(key: str, image: np.ndarray, at: int, step: int) -> Record:
    """Return the record of an image (h, w, 3) uint8."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    png = base64.b64encode(buffer.getvalue()).decode()
    return Record("image", {"key": safe_name(key), "png": png, "at": at, "step": step})


def has_already(client: MlflowClient, run_id: str, record: Record) -> bool:
    """Return whether the run has what follows a record of the kind `once`, up to the next end."""
    return bool(client.get_run(run_id).data.tags.get(record.content["tag"]) == record.content["digest"])


def send(client: MlflowClient, run_id: str, experiment: str, record: Record) -> str:
    """Send a record to the run and return the id of the run to go on with; sent twice it adds nothing."""
    content = record.content
    match record.kind:
        case "once":
            if content["renew"] and client.get_run(run_id).data.tags.get(content["tag"]) not in (
                None,
                content["digest"],
            ):
                return successor(client, run_id)
        case "tags":
            for key, value in content.items():
                client.set_tag(run_id, key, value)
        case "params":
            _send_params(client, run_id, content)
        case "metrics":
            _send_metrics(client, run_id, content["rows"])
        case "image":
            _send_image(client, run_id, content)
        case "artifact":
            _send_artifact(client, run_id, Path(str(record.path)), content["folder"])
        case "text":
            client.log_text(run_id, content["text"], content["name"])
        case "dataset":
            _send_dataset(client, run_id, experiment, content)
        case "register":
            _register(client, run_id, experiment, Path(str(record.path)), content)
        case "end":
            client.set_terminated(run_id, content["status"], content["at"])
    return run_id


def successor(client: MlflowClient, run_id: str) -> str:
    """Return a new run with all that `run_id` has but its scores, and delete that one.

    MLflow cannot take a value back: other scores would stand beside the earlier ones in one curve.
    """
    from mlflow.entities import Param

    old = client.get_run(run_id)
    tags = {key: value for key, value in old.data.tags.items() if key not in OF_SCORES_TAGS}
    new = str(client.create_run(old.info.experiment_id, old.info.start_time, tags, old.info.run_name).info.run_id)
    client.log_batch(new, params=[Param(key, value) for key, value in old.data.params.items()])
    for key in old.data.metrics:
        if not key.startswith(OF_SCORES):
            rows = [(key, each.value, each.timestamp, each.step) for each in client.get_metric_history(run_id, key)]
            for record in metric_records(rows):
                _send_metrics(client, new, record.content["rows"])
    if old.inputs is not None and old.inputs.dataset_inputs:
        client.log_inputs(new, datasets=old.inputs.dataset_inputs)
    with tempfile.TemporaryDirectory() as folder:
        for entry in client.list_artifacts(run_id):
            if entry.path not in FILES_OF_SCORES:
                path = Path(client.download_artifacts(run_id, entry.path, folder))
                _send_artifact(client, new, path, path.name if path.is_dir() else None)
    client.delete_run(run_id)
    return new


def _send_params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    client.log_batch(run_id, params=[Param(safe_name(key), value) for key, value in values.items()])


def _send_metrics(client: MlflowClient, run_id: str, rows: Iterable[tuple[str, float, int, int]]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(key, value, at, step) for key, value, at, step in rows])


def _send_image(client: MlflowClient, run_id: str, content: Mapping[str, Any]) -> None:
    """Log an image, unless the run has it: each call would add another."""
    from PIL import Image

    key, at, step = content["key"], content["at"], content["step"]
    prefix = f"images/{key.replace('/', '~')}+step+{step}+timestamp+{at}+"  # as MLflow names it
    if any(entry.path.startswith(prefix) for entry in client.list_artifacts(run_id, "images")):
        return
    with Image.open(io.BytesIO(base64.b64decode(content["png"]))) as picture:
        client.log_image(run_id, np.asarray(picture), key=key, step=step, timestamp=at)


def _send_artifact(client: MlflowClient, run_id: str, path: Path, folder: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), folder)
    elif path.exists():
        client.log_artifact(run_id, str(path), folder)


def _send_dataset(client: MlflowClient, run_id: str, experiment: str, content: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=experiment,
        digest=content["digest"],
        source_type="local",
        source=json.dumps({"uri": content["source"]}),
        profile=json.dumps(content["profile"]),
    )
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])


def _register(client: MlflowClient, run_id: str, experiment: str, checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Log the checkpoint as a model that loads without pickle: a new version, unless this run has one."""
    import mlflow

    if client.search_model_versions(f"name='{experiment}' and run_id='{run_id}'", max_results=1):
        return
    mlflow.set_tracking_uri(client.tracking_uri)
    # MLflow prints a line for every version; the call to a server is in a thread, which must not take our own errors
    remote = str(client.tracking_uri).startswith("http")
    quiet = contextlib.nullcontext() if remote else contextlib.redirect_stderr(io.StringIO())
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings(), quiet:
        warnings.filterwarnings("ignore", ".*input example was not provided.*")  # the signature is written out
        warnings.filterwarnings("ignore", ".*[Tt]ype hint.*")
        mlflow.pyfunc.log_model(
            name="checkpoint",
            python_model=str(SERVED),
            artifacts={"checkpoint": str(checkpoint)},
            code_paths=[str(Path(fieldcast.__file__).parent)],
            pip_requirements=REQUIREMENTS + (PYSTEPS_REQUIREMENTS if content["needs_pysteps"] else []),
            registered_model_name=experiment,
            tags={MODEL_TAG: content["model"]},
        )
