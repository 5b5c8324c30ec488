"""Stage `train`: prepared samples + a model's options -> `data/checkpoints/<model>/`, a learned one's as an MLflow run.

References are fitted here too: every model is a checkpoint folder; `compare` adds their runs. A training that was
interrupted goes on from its last epoch, in the same run, as long as nothing that it depends on has changed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import repeat
from pathlib import Path

import numpy as np
from pydantic import BaseModel
from tqdm import tqdm

from fieldcast import models
from fieldcast.models.layers.outputs import LearnedOptions
from fieldcast.models.layers.reference import Block, Training
from fieldcast.pipeline import config
from fieldcast.pipeline.datasets.atomic import replace_durable
from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times
from fieldcast.pipeline.datasets.grid import row_weights
from fieldcast.pipeline.datasets.parallel import iterate_blocks
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, COSTS, OBSERVATIONS, PREPARED, RESUME
from fieldcast.pipeline.datasets.preparation.climatology import complete, read_climatology
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.datasets.signature import Statistics
from fieldcast.pipeline.datasets.times import from_minutes
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting import calibration, costs, decisions
from fieldcast.pipeline.forecasting.base import base_kind, base_options
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig, Fitted, model_card, save_checkpoint
from fieldcast.pipeline.forecasting.forecaster import Forecaster, best_device, forecast_members, forecaster_of
from fieldcast.pipeline.tracking import runs as tracking
from fieldcast.pipeline.tracking.identity import log_checkpoint, log_identity
from fieldcast.pipeline.training import memory
from fieldcast.pipeline.training.termination import ended_by_signals

CODE = Path(__file__).parents[1]
# code that a training runs through, besides the model's own folder: the same list as in dvc.yaml
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
FIT_BLOCK = 32  # init times read at once
DECISION_BYTES = 2**29  # of validation forecasts kept for their decisions
SHARE_TIMES = 60  # at most, of the validation period
CALIBRATION_TIMES = 200  # at most, of the validation period

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
    if description.kind in models.LEARNED:
        train_learned(params, description)
    else:
        options = params.models[model].options
        finish(params, description, fit_kind(params, description, description.kind, options))


def train_learned(params: config.Params, description: CheckpointConfig) -> None:
    """Write the checkpoint of a learned model, and its MLflow run while it trains."""
    check_fits(params, description)
    model, resume = description.model, RESUME / description.model
    if int(os.environ.get("LOCAL_RANK", "0")) or int(os.environ.get("NODE_RANK", "0")):
        fit_learned(params, description, resume, tracking.Run(None, None, params.track.experiment))
        return  # one of several training processes: the first keeps the records and the weights
    fingerprint = prepare_resume(resume, params, model, description.data_digest)
    run = tracking.open_run(params.track.experiment, model, fingerprint, f"train@{model}", run_id=_run_id(resume))
    replace_durable(resume / "run_id", (run.run_id or "").encode())
    try:
        started = bool(list(resume.glob("*.ckpt")))
        if not started:  # a resumed run has them, and MLflow's parameters cannot be written twice
            log_identity(run, params, model, description.data_digest)
        with ended_by_signals():
            finish(params, description, fit_learned(params, description, resume, run))
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


def prepare_resume(folder: Path, params: config.Params, model: str, data_digest: str) -> str:
    """Return the fingerprint of this training; empty `folder` unless it holds an interrupted training with the same."""
    parts = {
        "model": params.models[model].options.model_dump(mode="json"),
        "kind": params.models[model].kind,
        "sample": params.sample.model_dump(mode="json"),
        "train": params.train.model_dump(mode="json"),
        "data": data_digest,
        "code": code_digest(params.models[model].kind),
    }
    fingerprint = sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    record = folder / "fingerprint"
    if not record.exists() or record.read_text() != fingerprint:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        replace_durable(record, fingerprint.encode())
    return fingerprint


def code_digest(kind: str) -> str:
    """Return a digest of the code that a training of a model of this kind runs through."""
    digest = sha256()
    for place in (*DEPENDENCIES, f"models/{kind}"):
        path = CODE / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(CODE).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def fit_learned(params: config.Params, description: CheckpointConfig, resume: Path, run: tracking.Run) -> Fitted:
    """Return the weights of a learned model."""
    from fieldcast.pipeline.training.fit import fit  # Lightning takes seconds to import, and references do without

    return fit(params, description, read_climatology(PREPARED), fit_base(params, description), resume, run)


def fit_base(params: config.Params, description: CheckpointConfig) -> dict[str, np.ndarray]:
    """Return the arrays of the reference that a network's forecasts are increments on."""
    options = params.models[description.model].options
    assert isinstance(options, LearnedOptions)
    kind = base_kind(options)
    return {} if kind is None else fit_kind(params, description, kind, base_options(kind, options.motion)).arrays


def fit_kind(params: config.Params, description: CheckpointConfig, kind: str, options: BaseModel) -> Fitted:
    """Return what a reference of this kind learns from the training period: nothing for most kinds."""
    if not models.KINDS[kind].fitted:
        return Fitted({}, {})
    dataset = read_climatology(PREPARED)
    climatology = complete(np.stack([dataset[name].values for name in description.target_names], axis=1))
    reader = FrameReader(OBSERVATIONS, description.target_names, params.sample.cache)
    rows = row_weights(reader.observations)
    training = Training(
        options=options,
        climatology=climatology,
        horizon=description.horizon,
        step=from_minutes(description.step_minutes),
        blocks=_training_blocks(description, reader, models.KINDS[kind].fitted_on),
        rows=None if rows is None else rows.astype(np.float32),
    )
    return Fitted(*models.reference(kind).fit(training))


def with_calibration(params: config.Params, description: CheckpointConfig, fitted: Fitted) -> Fitted:
    """Return a model with members, its calibration and its decisions: by forecasts of some validation init times."""
    forecaster = forecaster_of(description, fitted.arrays, best_device(description.kind))
    init_times = read_init_times(PREPARED / "init_times.csv", "validation")
    init_times = thinned(init_times, CALIBRATION_TIMES)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    blocks = _keeping(_validation_forecasts(params, forecaster, init_times, "calibrate"), kept)
    found = calibration.fit(blocks, len(init_times))
    decided = decide(found, forecaster.inside_range, kept)
    facts = {**fitted.facts, "calibrated on": f"{len(init_times)} init times of the validation period"}
    return replace(fitted, arrays={**fitted.arrays, **found.arrays(), **decided.arrays()}, facts=facts)


def _keeping(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], kept: list[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the blocks, and put the first `DECISION_BYTES` of them into `kept`."""
    size = 0
    for block in blocks:
        size += block[0].nbytes
        if size <= DECISION_BYTES or not kept:
            kept.append(block)
        yield block


def decide(
    calibrated: calibration.Calibration,
    inside_range: Callable[[np.ndarray], np.ndarray],
    blocks: list[tuple[np.ndarray, np.ndarray]],
) -> decisions.Decisions:
    """Return from how many of the calibrated members on an event is forecast."""
    _, members, leads = blocks[0][0].shape[:3]
    counts = decisions.VoteCounts(decisions.levels_of(observed for _, observed in blocks), members, leads)
    for block, observed in blocks:
        counts.add(inside_range(calibrated(block)), observed)
    return counts.decisions()


def with_share(params: config.Params, description: CheckpointConfig, fitted: Fitted) -> Fitted:
    """Return a network that keeps its base at the leads where it errs more in the validation period.

    Every init time counts alike, by the ratio of the two errors: otherwise two hours of heavy rain would decide.
    """
    init_times = thinned(read_init_times(PREPARED / "init_times.csv", "validation"), SHARE_TIMES)
    nothing = np.zeros(description.horizon, np.float32)
    network, base = (
        squared_errors(params, description, {**fitted.arrays, "share": share}, init_times)
        for share in (nothing + 1, nothing)
    )
    helps = mean_log_ratio(network, base) <= 0
    kept = [f"{(lead + 1) * description.step_minutes:g}" for lead in np.flatnonzero(~helps)]
    facts = {**fitted.facts, "leads that keep the base": f"{', '.join(kept)} minutes" if kept else "none"}
    return replace(fitted, arrays={**fitted.arrays, "share": helps.astype(np.float32)}, facts=facts)


def squared_errors(
    params: config.Params, description: CheckpointConfig, arrays: dict[str, np.ndarray], init_times: np.ndarray
) -> np.ndarray:
    """Return squared errors (init_time, horizon) in the validation period, each variable in its own scale."""
    forecaster = forecaster_of(description, arrays, best_device(description.kind))
    scale = np.array([channel.max - channel.min or 1.0 for channel in description.channels[: description.targets]])
    sums = []
    for members, observed in _validation_forecasts(params, forecaster, init_times, "compare with the base"):
        errors = (members[:, 0] - observed) / scale[:, None, None]
        sums.append(np.nansum(errors**2, axis=(0, 2, 3, 4)))
    return np.stack(sums)


def mean_log_ratio(errors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the mean over init times of log(errors / others), (horizon,), where neither is 0; 0 without any."""
    both = (errors > 0) & (others > 0)
    logarithms = np.where(both, np.log(np.where(both, errors, 1.0)) - np.log(np.where(both, others, 1.0)), 0.0)
    mean: np.ndarray = logarithms.sum(axis=0) / np.maximum(both.sum(axis=0), 1)
    return mean


def thinned(init_times: np.ndarray, at_most: int | None) -> np.ndarray:
    """Return every n-th of `init_times`, the least n that leaves `at_most`; all where that is None."""
    return init_times if at_most is None else init_times[:: -(-len(init_times) // at_most)]


def _validation_forecasts(
    params: config.Params, forecaster: Forecaster, init_times: np.ndarray, what: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the members (1, m, horizon, c, y, x) and what was observed (1, horizon, c, y, x) of each init time."""
    description = forecaster.config
    scheduler = models.scheduler_of(description.kind) or "synchronous"
    cache = params.sample.cache if scheduler == "synchronous" else "store"  # a process would decode all for each job
    reader = FrameReader(OBSERVATIONS, description.channel_names, cache)
    jobs = list(zip(repeat(forecaster), repeat(reader), reader.positions(init_times), init_times, strict=False))
    yield from iterate_blocks(validate_one, jobs, scheduler=scheduler, description=what, unit="init time")


def validate_one(
    forecaster: Forecaster, reader: FrameReader, position: int, init_time: np.datetime64
) -> tuple[np.ndarray, np.ndarray]:
    """Return the members (1, m, horizon, c, y, x) and what was observed (1, horizon, c, y, x) of one init time."""
    description = forecaster.config
    history = description.history
    frames = reader.sample(position, history, description.horizon)[None]
    tiles = config.Forecast()  # as large as the training crop
    members = forecast_members(
        forecaster, frames[:, :history], np.array([init_time]), tiles.tile_cells, tiles.overlap_cells
    )
    return members, frames[:, history:, : description.targets]


def _training_blocks(description: CheckpointConfig, reader: FrameReader, at_most: int | None) -> Blocks:
    """Return the samples of the training period, or evenly spread `at_most` of them."""
    init_times = thinned(read_init_times(PREPARED / "init_times.csv", "train"), at_most)
    return Blocks(reader, init_times, description.history, description.horizon)


@dataclass(frozen=True)
class Blocks:
    """Samples at `init_times`: history, target and init times, `FIT_BLOCK` at once, as often as wanted."""

    reader: FrameReader
    init_times: np.ndarray
    history: int
    horizon: int

    def __iter__(self) -> Iterator[Block]:
        positions = self.reader.positions(self.init_times)
        starts = range(0, len(positions), FIT_BLOCK)
        for start in tqdm(starts, desc="fit", unit="block", disable=not sys.stderr.isatty()):
            chosen = slice(start, start + FIT_BLOCK)
            frames = self.reader.samples(positions[chosen], self.history, self.horizon)
            yield frames[:, : self.history], frames[:, self.history :], self.init_times[chosen]


def _run_id(resume: Path) -> str | None:
    record = resume / "run_id"
    return record.read_text() or None if record.exists() else None


if __name__ == "__main__":
    config.run_stage(main)
