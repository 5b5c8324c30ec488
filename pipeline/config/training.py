"""Section on the training of learned models. No heavy import: validated before any work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from fieldcast.pipeline.config.section import Count, Frames, Section, Seed, Share
from fieldcast.pipeline.errors import InputError

RAIN_RATE = "mm h-1"  # units of the variables that `balanced` weighs
OF_SCHEDULE = {"none": set(), "linear": {"start", "decrease"}, "exponential": {"k"}, "inverse_sigmoid": {"k"}}
OF_LOSS = {"huber_delta": "huber", "spectral_weight": "spectral"}

Weight = Annotated[float, Field(gt=0, le=1e6)]  # a factor
Limit = Annotated[float, Field(gt=0, le=1e6)]
Device = Annotated[int, Field(ge=0, le=1023)]
Devices = Literal["auto"] | Annotated[int, Field(gt=0, le=1024)] | Annotated[list[Device], Field(min_length=1)]


class ScheduledSampling(Section):
    """Probability, at step i, that an autoregressive model is fed the observed value in place of its forecast.

    Bengio et al. (2015), section 2.4: `linear` max(0, start - decrease i), `exponential` k^i, `inverse_sigmoid`
    k / (k + exp(i / k)). It has no effect on models that forecast all leads at once.
    """

    schedule: Literal["none", "linear", "exponential", "inverse_sigmoid"] = "none"  # none: never the observed value
    start: Share = 1.0
    decrease: Share = 2e-5  # a step; 0: always as at the start
    k: Annotated[float, Field(gt=0, le=1e12)] | None = None  # exponential: below 1; inverse_sigmoid: at least 1

    @model_validator(mode="after")
    def _options_of_the_schedule(self) -> ScheduledSampling:
        if odd := sorted(self.model_fields_set - {"schedule"} - OF_SCHEDULE[self.schedule]):
            raise ValueError(f"{odd[0]} has no effect with schedule {self.schedule}; remove it")
        if self.schedule == "exponential" and not (self.k is not None and self.k < 1):
            raise ValueError(f"schedule exponential needs a k below 1, such as 0.9995, got {self.k}")
        if self.schedule == "inverse_sigmoid" and not (self.k is not None and self.k >= 1):
            raise ValueError(f"schedule inverse_sigmoid needs a k of at least 1, such as 1000, got {self.k}")
        return self


class Rollout(Section):
    """Leads that count in the loss: `start_leads` at first, then linearly more until all do."""

    start_leads: Frames
    ramp_fraction: Annotated[float, Field(gt=0, le=1)]  # share of the schedule after which all leads count


class Train(Section):
    """Training of all learned models: one loss, one optimiser, one budget."""

    seed: Seed = 1
    # mix: squared errors of normalised and of physical values, both by their variance; members have the CRPS instead
    loss: Literal["mse", "mix", "mae", "huber", "balanced", "spectral"] = "mse"
    huber_delta: Weight = 1.0  # huber: squared up to here, linear beyond, in normalised units
    spectral_weight: Weight = 1.0  # spectral: of the mismatch of amplitudes beside the squared error
    lead_weights: Literal["same", "linear", "exponential"] = "same"  # over the leads, from 1 to last_lead_weight
    last_lead_weight: Weight = 5.0  # linear, exponential: relative to the first; their mean is 1
    scheduled_sampling: ScheduledSampling = ScheduledSampling()
    rollout: Rollout | None = None  # null: all leads count from the start
    epochs: Count
    max_minutes: Limit | None = None  # the schedule finishes inside it; null: no limit, and repeatable
    batch_size: Count = 16
    learning_rate: Annotated[float, Field(ge=1e-12, le=10)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 1e-2
    warmup: Share = 0.05  # share of the schedule with a rising learning rate
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    gradient_clip: Weight = 1.0  # norm of all gradients; `balanced` weighs heavy rain up to 30-fold: try 10
    patience: Count = 10  # epochs without a lower validation loss before training stops
    # auto: bf16-mixed where the GPU or the processor computes in bfloat16 by itself, else 32-true
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "64-true"] = "32-true"
    compile: Literal["off", "default", "reduce-overhead"] = "off"  # the last: CUDA graphs, for small batches on a GPU
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    devices: Devices = "auto"  # how many, or the numbers of those to use
    num_nodes: Annotated[int, Field(gt=0, le=10_000)] = 1
    strategy: Literal["auto", "ddp", "ddp_find_unused_parameters_true"] = "auto"  # of several devices
    augment: Literal["none", "flips", "turns"] = "none"  # samples are flipped at random; turns: by quarters too
    memory_gb: Limit | None = None  # that a training may hold, 10^9 bytes; null: what is free
    workers: Annotated[int, Field(ge=0, le=1024)] = 0  # processes that load samples; 0: the training process itself

    @field_validator("strategy", mode="before")
    @classmethod
    def _whole_weights(cls, strategy: Any) -> Any:
        if isinstance(strategy, str) and strategy.startswith("fsdp"):
            raise ValueError(
                "sharded weights go neither with gradient_clip, a norm of all of them, nor with ema_decay, which "
                "averages them; expected auto or ddp, where every device holds the whole network"
            )
        return strategy

    @model_validator(mode="after")
    def _options_of_the_loss(self) -> Train:
        for name, loss in OF_LOSS.items():
            if name in self.model_fields_set and self.loss != loss:
                raise ValueError(f"{name} has no effect with loss {self.loss}; remove it or choose {loss}")
        if "last_lead_weight" in self.model_fields_set and self.lead_weights == "same":
            raise ValueError("last_lead_weight has no effect with lead_weights same; remove it or choose linear")
        return self

    def check_units(self, units: Sequence[str]) -> None:
        """Raise `InputError` where the loss needs rain and none of the target variables, of these units, is rain."""
        if self.loss == "balanced" and RAIN_RATE not in units:
            raise InputError(
                f"params.yaml: train.loss balanced weighs rain rates in {RAIN_RATE}, targets are in {', '.join(units)}"
            )
