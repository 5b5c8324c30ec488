"""Identity of a model in MLflow: parameters, data and configuration of its run, and its registered version."""

from __future__ import annotations

import json
from pathlib import Path

from fieldcast import models
from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import manifest, store
from fieldcast.pipeline.datasets.paths import CHECKED, CHECKPOINTS, PREPARED
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.tracking.runs import CHECKPOINT_TAG, Run

REGISTERED_TAG = "fieldcast.registered"  # of a run that has its identity and its version


def log_identity(run: Run, params: config.Params, model: str, data_digest: str) -> None:
    """Log the parameters that tell runs apart, the whole configuration and the data that the run learns from."""
    options = {f"model.{key}": value for key, value in params.models[model].options.model_dump(mode="json").items()}
    learned = params.models[model].kind in models.LEARNED
    training = params.train.model_dump(mode="json", include={"epochs", "batch_size", "learning_rate", "loss", "seed"})
    run.params(
        {
            "model.name": model,
            "model.kind": params.models[model].kind,
            **options,
            "sample.history": params.sample.history,
            "sample.horizon": params.sample.horizon,
            **({f"train.{key}": value for key, value in training.items()} if learned else {}),
        }
    )
    summary = {"quality": json.loads(manifest.read_file(PREPARED / "quality.json"))}
    summary["quality"].pop("days")
    run.dataset(data_digest, str(PREPARED), summary)
    for path in (Path("params.yaml"), Path("dvc.lock"), CHECKED / "params.json"):
        run.text(path)
    run.artifact(PREPARED / "quality.png", "data")


def log_checkpoint(run: Run, folder: Path) -> None:
    """Register the checkpoint in `folder` as a version of the experiment's model, and tag its run with its digest."""
    about = checkpoint.read_config(folder)
    run.tags({CHECKPOINT_TAG: store.directory_digest(folder)})
    run.register(folder, about.kind)
    run.tags({REGISTERED_TAG: "true"})


def complete(run: Run, params: config.Params, model: str) -> None:
    """Log identity and version of a model whose run lacks them.

    Such are the references, which are fitted without a tracker, and models whose checkpoint came out of DVC's cache.
    """
    if run.tag(REGISTERED_TAG) is not None:
        return
    log_identity(run, params, model, read_digest(PREPARED))
    log_checkpoint(run, CHECKPOINTS / model)
