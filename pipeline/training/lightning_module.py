"""The LightningModule: one loss, one optimiser and one schedule for every learned model."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from fieldcast.pipeline.config.training import RAIN_RATE, Train
from fieldcast.pipeline.forecasting.losses import choose, lead_weights, rain_weights
from fieldcast.pipeline.forecasting.network import Network
from fieldcast.pipeline.training.augmentation import Turning
from fieldcast.pipeline.training.samples import Batch
from fieldcast.pipeline.training.schedules import draw_truth, first_leads, leads_at, truth_probability


def learning_rate_scale(progress: float, warmup: float) -> float:
    """Return the factor on the learning rate: a linear rise over `warmup`, then a cosine to 0 at progress 1."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    rest = min((progress - warmup) / max(1 - warmup, 1e-9), 1.0)
    return 0.5 * (1 + math.cos(math.pi * rest))


class Budget:
    """Budget of a training: steps, or minutes where those run out first.

    The schedule follows it, so that the learning rate reaches 0 whichever limit ends the training; the seconds spent
    are kept over a resume.
    """

    def __init__(self, max_minutes: float | None, steps: int = 1) -> None:
        self.steps, self.seconds_allowed = steps, None if max_minutes is None else 60 * max_minutes
        self.seconds_before = 0.0
        self.started: float | None = None

    def start(self) -> None:
        """Start the clock."""
        self.started = time.monotonic()

    def seconds(self) -> float:
        """Return the seconds spent on training, earlier parts of a resumed one included."""
        return self.seconds_before + (0.0 if self.started is None else time.monotonic() - self.started)

    def progress(self, step: int) -> float:
        """Return the share of the training that is done at `step`."""
        by_steps = step / self.steps
        return by_steps if self.seconds_allowed is None else max(by_steps, self.seconds() / self.seconds_allowed)


class ForecastModule(lightning.LightningModule):
    """Trains a `Network` on (history, target) batches; missing cells carry no gradient."""

    is_rain: Tensor
    spread: Tensor

    def __init__(
        self,
        network: Network,
        options: Train,
        budget: Budget,
        spread: np.ndarray | None = None,
        turning: Turning | None = None,
    ) -> None:
        super().__init__()
        self.network, self.options, self.budget = network, options, budget
        self.loss = choose(options, network.output)
        self.balanced = options.loss == "balanced" and network.output == "point"
        self.turning = turning
        spread = np.ones(1) if spread is None else spread  # (c_target,), of the physical values in a mixed loss
        self.register_buffer("spread", torch.as_tensor(spread, dtype=torch.float32)[:, None, None], persistent=False)
        rain = [channel.units == RAIN_RATE for channel in network.normaliser.channels]
        self.register_buffer("is_rain", torch.tensor(rain)[:, None, None], persistent=False)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of one batch in normalised units, with the leads and observed inputs of the curriculum."""
        batch = batch if self.turning is None else self.turning.draw(batch)
        horizon = batch["target"].shape[1]
        leads = leads_at(self.budget.progress(self.global_step), horizon, self.options.rollout)
        loss = self._loss(batch, leads, truth_probability(self.global_step, self.options.scheduled_sampling))
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch["history"]))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of one validation batch, which chooses the checkpoint that is kept."""
        self.log("val/loss", self._loss(batch), prog_bar=True, sync_dist=True, batch_size=len(batch["history"]))

    def configure_optimizers(self) -> Any:
        """Return AdamW (no decay on biases, norms and other vectors) and its schedule over the budget."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.options.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        if self._trainer is not None:
            self.budget.steps = int(self.trainer.estimated_stepping_batches)  # fewer where several devices share them
        optimiser = torch.optim.AdamW(groups, lr=self.options.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, self._scale)
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Start the clock of the budget."""
        self.budget.start()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Make dropout and noise follow from seed, step and rank: a resumed training repeats an undisturbed one."""
        torch.manual_seed((self.options.seed * 1_000_003 + self.global_step) * 1_000 + self.global_rank)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop once the budget is spent."""
        if self.budget.progress(self.global_step) >= 1:
            self.trainer.should_stop = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seconds spent."""
        checkpoint["seconds_spent"] = self.budget.seconds()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from the seconds spent before the interruption."""
        self.budget.seconds_before = checkpoint["seconds_spent"]

    def _scale(self, step: int) -> float:
        return learning_rate_scale(self.budget.progress(step), self.options.warmup)

    def _loss(self, batch: Batch, leads: int | None = None, probability: float = 0.0) -> Tensor:
        """Return the loss of the first `leads`, all by default; `probability` is that of observed inputs."""
        where = batch["init_time"], batch["origin"]
        target = self.network.normalise_target(batch["target"], *where)
        truth = None
        if probability > 0 and self.network.supports_teacher_forcing:
            truth = draw_truth(probability, len(target), target.shape[1], target.device)
        given = {name: batch[name] for name in ("flow", "base") if name in batch}
        forecast = self.network(batch["history"], *where, **given, target=target, truth=truth).float()
        wanted, weights = first_leads(target, leads or target.shape[1]), self._weights(batch["target"])
        batches = forecast.split(len(wanted))  # one, or with deep supervision one after every decoder layer
        loss = torch.stack([self.loss(each, wanted, weights) for each in batches]).mean()
        if self.options.loss != "mix":
            return loss
        observed = first_leads(batch["target"], leads or target.shape[1]) / self.spread
        physical = [self.network.restore(each, *where, bounded=False) / self.spread for each in batches]
        return loss + torch.stack([self.loss(each, observed, weights) for each in physical]).mean()

    def _weights(self, observed: Tensor) -> Tensor:
        """Return the weights of the cells of a physical target (b, horizon, c, h, w), in a shape that broadcasts."""
        options, horizon, channels = self.options, observed.shape[1], observed.shape[2]
        weights = lead_weights(options.lead_weights, options.last_lead_weight, horizon, observed.device)
        if self.balanced:
            weights = weights * torch.where(self.is_rain[:channels], rain_weights(observed), 1.0)
        return weights
