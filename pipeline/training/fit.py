"""Fit a learned model with Lightning: data, callbacks, resume, and the weights that are kept."""

from __future__ import annotations

import logging
import math
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from lightning import LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import (
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    TQDMProgressBar,
)
from lightning.pytorch.loggers.logger import Logger
from torch.utils.data import DataLoader

from fieldcast.pipeline import config
from fieldcast.pipeline.config.training import Train
from fieldcast.pipeline.datasets.channels import vector_pairs
from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times
from fieldcast.pipeline.datasets.paths import OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.transforms import transform
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting.base import Guide
from fieldcast.pipeline.forecasting.checkpoint import BASE, CheckpointConfig, Fitted
from fieldcast.pipeline.forecasting.costs import Costs, count_macs, device_name, peak_memory_mb
from fieldcast.pipeline.forecasting.forecaster import build_network
from fieldcast.pipeline.forecasting.network import Network
from fieldcast.pipeline.tracking.runs import Run
from fieldcast.pipeline.training import checkpoint_files
from fieldcast.pipeline.training.augmentation import Turning
from fieldcast.pipeline.training.checkpoint_files import CheckpointFiles
from fieldcast.pipeline.training.lightning_module import Budget, ForecastModule
from fieldcast.pipeline.training.references import Part
from fieldcast.pipeline.training.samples import Batch, HeldOut, SampleDataset, SampleShape, loader
from fieldcast.pipeline.training.termination import handle
from fieldcast.pipeline.training.validation import Base

log = logging.getLogger(__name__)


class Samples(LightningDataModule):
    """Training and validation batches; both see crops of the same size."""

    def __init__(
        self,
        params: config.Params,
        description: CheckpointConfig,
        guide: Guide | None = None,
        parts: Sequence[Part] = (),
    ) -> None:
        super().__init__()
        self.options, self.sample = params.train, params.sample
        names = description.channel_names
        self.reader = FrameReader(OBSERVATIONS, names, params.sample.cache)
        self.shape = SampleShape(
            description.history,
            description.horizon,
            tuple(names),
            description.targets,
            params.sample.crop_cells,
            params.sample.min_valid_share,
        )
        self.training = self._dataset("train", HeldOut(guide, parts) if guide is not None and parts else guide)
        self.validation = self._dataset("validation", guide)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return shuffled training batches."""
        options = self.options
        return loader(self.training, options.batch_size, options.seed, options.workers, shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return validation batches: the same crops every time."""
        options = self.options
        return loader(self.validation, options.batch_size, options.seed, options.workers, shuffle=False)

    def _dataset(self, split: str, guide: Guide | HeldOut | None) -> SampleDataset:
        init_times = read_init_times(PREPARED / "init_times.csv", split)
        return SampleDataset(self.reader, init_times, self.shape, guide)


SPREAD_SAMPLES = 50
FEW_CORES = 2  # on so few, which may be two threads of one, a second thread of torch waits more than it computes
Precision = Literal["32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"]
EMULATED = (
    "train.precision {}: this processor has no bfloat16 instructions and emulates them, several times slower than "
    "float32; choose 32-true\n"
)


class EpochLines(Callback):
    """One line an epoch where there is no terminal to draw a progress bar on."""

    def __init__(self, model: str) -> None:
        self.model = model

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the epoch and its validation loss."""
        if not trainer.is_global_zero:
            return
        loss = float(trainer.callback_metrics["val/loss"])
        done = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step {trainer.global_step}"
        sys.stderr.write(f"{self.model}: {done}, validation loss {loss:.4f}\n")


class Divergence(Callback):
    """Ends a training whose loss is no number any more, before its weights are kept."""

    def __init__(self, model: str) -> None:
        self.model = model

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Raise `InputError` where the validation loss is not finite."""
        loss = float(trainer.callback_metrics["val/loss"])
        if not math.isfinite(loss):
            raise InputError(
                f"params.yaml: the training of {self.model} diverged: its validation loss is {loss} after epoch "
                f"{trainer.current_epoch + 1}: lower train.learning_rate or train.gradient_clip, and look for outliers "
                f"in {PREPARED / 'quality.json'}"
            )


class Termination(Callback):
    """Lets SIGTERM end the process at once: the last whole epoch is on disk. Lightning's handler ends with code 0."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put our handler in the place of Lightning's."""
        handle()


class RunLogger(Logger):
    """Hands Lightning's metrics to our MLflow run, which outlives a tracker that is down."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        """Return the experiment."""
        return self.run.experiment

    @property
    def version(self) -> str:
        """Return the run."""
        return self.run.run_id or ""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log one value a metric; the epoch is left out, since steps tell it."""
        self.run.metrics({key: value for key, value in metrics.items() if key != "epoch"}, step or 0)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Log nothing: the stage logs what identifies the run."""


def fit(
    params: config.Params,
    description: CheckpointConfig,
    climatology: xr.Dataset,
    base: Base,
    resume: Path,
    run: Run,
) -> Fitted:
    """Return the weights with the lowest validation loss, after training to the end of the budget.

    Goes on from `resume/last.ckpt` where there is one. Repeatable on one CPU machine for a seed, as long as
    `max_minutes` does not end the training.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    options = params.train
    seed_everything(options.seed, workers=True, verbose=False)
    if (os.cpu_count() or 1) <= FEW_CORES:
        torch.set_num_threads(1)
    options.check_units([channel.units for channel in description.channels[: description.targets]])
    network = build_network(description, *statistics(description, climatology), base.arrays)
    samples = Samples(params, description, network.guide, base.parts)
    if options.compile != "off":
        network.model.compile(mode=options.compile)  # in place: the names of the weights stay
    budget = Budget(options.max_minutes)
    module = ForecastModule(network, options, budget, spread_of(samples.training), turning(options, description))
    keep = ModelCheckpoint(resume, "best", monitor="val/loss")  # by epoch
    newest = ModelCheckpoint(resume, "last", enable_version_counter=False)  # of every epoch, better or not
    watch = TQDMProgressBar() if sys.stderr.isatty() else EpochLines(description.model)
    trainer = make_trainer(options, [watch, Termination(), Divergence(description.model), keep, newest], RunLogger(run))
    if trainer.strategy.root_device.type == "cpu" and "bf16" in options.precision and not has_bfloat16():
        sys.stderr.write(EMULATED.format(options.precision))
    last = checkpoint_files.newest(resume)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not have many workers.*")  # samples are read in whole batches
        warnings.filterwarnings("ignore", ".*number of training batches.*")  # logging is by epoch
        warnings.filterwarnings("ignore", ".*Checkpoint directory .* exists.*")
        warnings.filterwarnings("ignore", ".*treespec, LeafSpec.*")  # Lightning's own, under torch 2.13
        trainer.fit(module, samples, ckpt_path=None if last is None else str(last), weights_only=True)
    best = checkpoint_files.read(Path(keep.best_model_path))
    prefix = "network."
    weights = {key.removeprefix(prefix): value for key, value in best["state_dict"].items() if key.startswith(prefix)}
    facts = training_facts(network, samples, trainer, keep)
    rate = trainer.global_step * options.batch_size / max(budget.seconds(), 1e-9)
    run.metrics({"train/seconds": budget.seconds(), "train/samples_per_second": rate}, 0)
    arrays = {key: value.float().numpy() for key, value in weights.items()}
    return Fitted(
        arrays | {f"{BASE}{name}": array for name, array in base.arrays.items()},
        facts,
        training_costs(description, options, network, budget, len(samples.training)),
    )


def spread_of(samples: SampleDataset) -> np.ndarray:
    """Return the standard deviation (c_target,) of what is forecast, in physical units, over some of the samples."""
    chosen = np.unique(np.linspace(0, len(samples) - 1, SPREAD_SAMPLES).round().astype(int))
    fields = np.concatenate([samples[(int(index), 0)]["target"][0].numpy() for index in chosen])  # (n, c, h, w)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of a variable that is never there
        spread = np.nanstd(fields, axis=(0, 2, 3))
    return np.where(spread > 0, spread, 1.0)  # NaN and constant fields too


def turning(options: Train, description: CheckpointConfig) -> Turning | None:
    """Return how samples are turned in training; raise `InputError` where fields have a direction of their own."""
    if options.augment == "none":
        return None
    if description.anomalies or description.coordinates:
        reason = "departures from maps" if description.anomalies else "sample.coordinates"
        raise InputError(
            f"params.yaml: train.augment is {options.augment}, which does not go with {reason}: they belong to a place "
            "on the grid; choose none"
        )
    up = description.signature.y.last > description.signature.y.first
    return Turning(options.augment == "turns", vector_pairs(description.channel_names), 1.0 if up else -1.0)


def resolve_precision(options: Train) -> Precision:
    """Return the precision for Lightning: for `auto` bf16-mixed on hardware with bfloat16, else 32-true."""
    if options.precision != "auto":
        return options.precision
    on_gpu = torch.cuda.is_available() and options.accelerator in ("auto", "gpu", "cuda")
    native = torch.cuda.is_bf16_supported() if on_gpu else has_bfloat16()
    return "bf16-mixed" if native else "32-true"


def has_bfloat16() -> bool:
    """Return whether this processor computes in bfloat16 by itself."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def statistics(description: CheckpointConfig, climatology: xr.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Return the baseline (hours, c, y, x) or (1, c, 1, 1), in transformed values, and the scale (c,)."""
    scale = np.array([channel.scale for channel in description.channels])
    if not description.anomalies:
        return np.array([channel.mean for channel in description.channels])[None, :, None, None], scale
    maps = []
    for channel in description.channels:
        fields = torch.as_tensor(climatology[channel.name].values)  # (hours, y, x)
        values = transform(fields, channel.transform, channel.floor).numpy()
        maps.append(np.where(np.isfinite(values), values, np.nanmean(values)))
    return np.stack(maps, axis=1), scale


def make_trainer(options: Train, callbacks: list[Callback], logger: Logger) -> Trainer:
    """Return a trainer with early stopping and averaged weights."""
    callbacks = [
        *callbacks,
        EMAWeightAveraging(decay=options.ema_decay),  # from step 0: a later start would validate untrained weights
        EarlyStopping("val/loss", patience=options.patience, verbose=False, check_finite=False),
    ]
    return Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.num_nodes,
        strategy=options.strategy,
        precision=resolve_precision(options),
        max_epochs=options.epochs,
        gradient_clip_val=options.gradient_clip,
        callbacks=callbacks,
        plugins=[CheckpointFiles()],
        logger=logger,
        log_every_n_steps=1_000_000,  # by epoch: a value a step would cost more than it tells
        num_sanity_val_steps=0,
        enable_progress_bar=any(isinstance(callback, TQDMProgressBar) for callback in callbacks),
        enable_model_summary=False,
        deterministic="warn" if torch.cuda.is_available() else True,
    )


def training_costs(
    description: CheckpointConfig, options: Train, network: Network, budget: Budget, samples: int
) -> Costs:
    """Return what the training took, and the budget that it was given."""
    side = description.crop_cells
    cells = [min(side or size, size) for size in description.signature.grid_shape]
    with torch.compiler.set_stance("force_eager"):  # products are counted as they are called
        macs = _counted(network.model, (description.history, description.sizes.channels_in, *cells))
    return Costs(
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        macs=macs,
        training_seconds=round(budget.seconds(), 3),
        peak_memory_mb=peak_memory_mb(),
        budget={
            "epochs": options.epochs,
            "max_minutes": options.max_minutes,
            "batch_size": options.batch_size,
            "training_samples": samples,
        },
        device=device_name(learned=True),
    )


def _counted(model: torch.nn.Module, shape: tuple[int, ...]) -> int | None:
    """Return the multiply-adds of a trained model; None where they cannot be counted, which costs no training."""
    try:
        return count_macs(model, shape)
    except Exception as error:  # whatever a counter may stumble over
        log.warning("multiply-adds not counted: %s: %s", type(error).__name__, error)
        return None


def training_facts(
    network: torch.nn.Module, samples: Samples, trainer: Trainer, keep: ModelCheckpoint
) -> dict[str, Any]:
    """Return what the model card tells about the training; no clock time, which would differ between equal runs."""
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "training samples": len(samples.training),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "validation loss": f"{float(keep.best_model_score or 'nan'):.6g}",
    }
