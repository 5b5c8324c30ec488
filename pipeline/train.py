"""Stage `train`: prepared samples + a model's options -> `data/checkpoints/<model>/`, a learned one's as an MLflow run.

References are fitted here too: every model is a checkpoint folder; `compare` adds their runs. A training that was
interrupted goes on from its last epoch, in the same run, as long as nothing that it depends on has changed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path

from fieldcast import models
from fieldcast.pipeline import config
from fieldcast.pipeline.datasets.atomic import replace_durable
from fieldcast.pipeline.datasets.code import code_digest
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, COSTS, PREPARED, RESUME
from fieldcast.pipeline.datasets.preparation.climatology import read_climatology
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.datasets.preparation.ranges import Range
from fieldcast.pipeline.datasets.signature import Statistics
from fieldcast.pipeline.errors import InputError, run_stage
from fieldcast.pipeline.forecasting import costs
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig, Fitted, model_card, save_checkpoint
from fieldcast.pipeline.tracking import runs as tracking
from fieldcast.pipeline.tracking.identity import log_checkpoint, log_identity
from fieldcast.pipeline.training import memory
from fieldcast.pipeline.training.amounts import check_amounts, check_cells
from fieldcast.pipeline.training.references import fit_kind
from fieldcast.pipeline.training.termination import ended_by_signals
from fieldcast.pipeline.training.validation import Base, fit_base, with_calibration, with_share

# code that a training runs through, besides the folders of the model and its base: the same list as in dvc.yaml
DEPENDENCIES = (
    "models/layers",
    "pipeline/config",
    "pipeline/datasets",
    "pipeline/errors.py",
    "pipeline/forecasting",
    "pipeline/tracking",
    "pipeline/train.py",
    "pipeline/training",
)
RANKS = ("RANK", "LOCAL_RANK", "GROUP_RANK", "NODE_RANK", "SLURM_PROCID")  # of torchrun, Lightning and Slurm

log = logging.getLogger(__name__)


def main() -> None:
    """Train the model named on the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    params = config.load()
    train(params, config.named_model(__doc__ or "", params))


def train(params: config.Params, model: str) -> None:
    """Write the checkpoint of `model`."""
    if model not in params.models:
        raise InputError(f"params.yaml: models has no {model!r}, expected one of {', '.join(params.models)}")
    data_digest = read_digest(PREPARED)
    description = describe(params, model, data_digest)
    targets = [Range(each.name, each.units, each.min, each.max) for each in description.channels[: description.targets]]
    check_amounts(model, params.models[model].options, targets)
    check_cells(model, params.models[model].options, description.signature.cell_ratio)
    if description.kind in models.LEARNED:
        train_learned(with_own_seed(params, model), description)
    else:
        options = params.models[model].options
        finish(params, description, fit_kind(params, description, description.kind, options))


def with_own_seed(params: config.Params, model: str) -> config.Params:
    """Return the parameters with the seed of this model as that of the training, where it has one."""
    seed = params.models[model].options.model_dump().get("seed")
    return (
        params if seed is None else params.model_copy(update={"train": params.train.model_copy(update={"seed": seed})})
    )


def train_learned(params: config.Params, description: CheckpointConfig) -> None:
    """Write the checkpoint of a learned model, and its MLflow run while it trains."""
    check_fits(params, description)
    base = fit_base(params, description)
    description = replace(description, chosen_bases=base.kinds if description.options["base"] == "auto" else ())
    model, resume = description.model, RESUME / description.model
    fingerprint = fingerprint_of(params, model, description.data_digest)
    if not is_first_process(os.environ):
        await_resume(resume, fingerprint)
        fit_learned(params, description, base, resume, tracking.Run(None, None, params.track.experiment))
        return  # one of several training processes: the first keeps the records and the weights
    prepare_resume(resume, fingerprint)
    run = tracking.open_run(params.track.experiment, model, fingerprint, f"train@{model}", run_id=_run_id(resume))
    replace_durable(resume / "run_id", (run.run_id or "").encode())
    try:
        started = bool(list(resume.glob("*.ckpt")))
        if not started:  # a resumed run has them, and MLflow's parameters cannot be written twice
            log_identity(run, params, model, description.data_digest)
        with ended_by_signals():
            finish(params, description, fit_learned(params, description, base, resume, run))
    except BaseException as error:
        run.end("FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    log_checkpoint(run, CHECKPOINTS / model)
    run.end()
    shutil.rmtree(resume)


def finish(params: config.Params, description: CheckpointConfig, fitted: Fitted) -> None:
    """Calibrate a model with members; write its checkpoint and what its training cost.

    A network whose increments do not help at a lead keeps its base there.
    """
    if description.chosen_bases:
        fitted = replace(fitted, facts={**fitted.facts, "base at each lead": ", ".join(description.chosen_bases)})
    if description.frame.based and description.members is None:
        fitted = with_share(params, description, fitted)
    if description.members is not None:
        fitted = with_calibration(params, description, fitted)
    save_checkpoint(CHECKPOINTS / description.model, description, fitted.arrays, model_card(description, fitted.facts))
    costs.write(fitted.costs, COSTS / "training" / f"{description.model}.json")


def describe(params: config.Params, model: str, data_digest: str) -> CheckpointConfig:
    """Return what the checkpoint of `model` will be."""
    statistics = Statistics.read(PREPARED)
    return CheckpointConfig(
        model=model,
        kind=params.models[model].kind,
        options=params.models[model].options.model_dump(mode="json"),
        history=params.sample.history,
        horizon=params.sample.horizon,
        step_minutes=statistics.signature.step_minutes,
        channels=statistics.channels,
        targets=statistics.targets,
        anomalies=statistics.anomalies,
        signature=statistics.signature,
        crop_cells=params.sample.crop_cells,
        data_digest=data_digest,
        calendar=params.sample.calendar,
        coordinates=params.sample.coordinates,
    )


def check_fits(params: config.Params, description: CheckpointConfig) -> None:
    """Raise `InputError` where training the model would take more memory than it may."""
    cells = memory.training_cells(description.signature.grid_shape, description.crop_cells)
    options = params.models[description.model].options
    memory.check_memory(
        description.model,
        description.kind,
        options,
        asdict(description.sizes),
        cells,
        params.train.batch_size,
        params.train.memory_gb,
    )


def is_first_process(environment: Mapping[str, str]) -> bool:
    """Return whether this is the first of the processes that train together, whoever has started them."""
    return not any(int(environment.get(name) or 0) for name in RANKS)


def fingerprint_of(params: config.Params, model: str, data_digest: str) -> str:
    """Return the fingerprint of a training: of all that it depends on."""
    parts = {
        "model": params.models[model].options.model_dump(mode="json"),
        "kind": params.models[model].kind,
        "sample": params.sample.model_dump(mode="json"),
        "train": params.train.model_dump(mode="json"),
        "data": data_digest,
        "code": code_digest(code_of(params.models[model])),
    }
    return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def prepare_resume(folder: Path, fingerprint: str) -> None:
    """Empty `folder` unless it holds an interrupted training with this fingerprint."""
    if not holds(folder, fingerprint):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        replace_durable(folder / "fingerprint", fingerprint.encode())


def await_resume(folder: Path, fingerprint: str, seconds: float = 60) -> None:
    """Wait until the first process has prepared `folder`: else this one might go on from an older training.

    Raise `InputError` where that takes longer than `seconds`.
    """
    end = time.monotonic() + seconds
    while not holds(folder, fingerprint):
        if time.monotonic() > end:
            raise InputError(
                f"{folder}: the first training process has not prepared it within {seconds:g} s; processes on several "
                "nodes need one project folder that all of them share"
            )
        time.sleep(0.1)


def holds(folder: Path, fingerprint: str) -> bool:
    """Return whether `folder` is prepared for the training with this fingerprint."""
    try:
        return (folder / "fingerprint").read_text() == fingerprint
    except FileNotFoundError:
        return False


def code_of(entry: config.ModelEntry) -> list[str]:
    """Return the files and folders of code that a training of this model runs through."""
    kinds = [entry.kind, *config.bases_of(entry)]
    return [*DEPENDENCIES, *(f"models/{kind}" for kind in kinds)]


def fit_learned(
    params: config.Params, description: CheckpointConfig, base: Base, resume: Path, run: tracking.Run
) -> Fitted:
    """Return the weights of a learned model."""
    from fieldcast.pipeline.training.fit import fit  # Lightning takes seconds to import, and references do without

    return fit(params, description, read_climatology(PREPARED), base, resume, run)


def _run_id(resume: Path) -> str | None:
    record = resume / "run_id"
    return record.read_text() or None if record.exists() else None


if __name__ == "__main__":
    run_stage(main)
