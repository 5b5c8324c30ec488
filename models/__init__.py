"""Forecast models by name: five references in numpy, two that learn in torch.

Tensor letters, everywhere in this package: b batch, t time, c channel, h height, w width, d feature, n token (or cell).

A learned model maps `history (b, t, c_in, h, w)` to `(b, horizon, c_out, h, w)`, or to m members of that, `(b, m,
horizon, c_out, h, w)`, in normalised values; NaN marks a missing cell; its targets are the first `c_out` input
channels. A reference works in physical units, on numpy arrays.
Importing this package loads neither torch nor pysteps.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from pydantic import BaseModel

from models.advection.options import AdvectionOptions
from models.climatology.options import ClimatologyOptions
from models.damped_persistence.options import DampedPersistenceOptions
from models.persistence.options import PersistenceOptions
from models.recurrent.options import RecurrentOptions
from models.simvp.options import SimVPOptions
from models.sizes import Sizes
from models.steps.options import StepsOptions
from models.video_transformer.options import VideoTransformerOptions

if TYPE_CHECKING:
    from torch import nn

REFERENCES: tuple[str, ...] = ("persistence", "climatology", "damped_persistence", "advection", "steps")
LEARNED: tuple[str, ...] = ("recurrent", "video_transformer", "simvp")

NEEDS_PYSTEPS: tuple[str, ...] = ("advection", "steps")

OPTIONS: dict[str, type[BaseModel]] = {
    "persistence": PersistenceOptions,
    "climatology": ClimatologyOptions,
    "damped_persistence": DampedPersistenceOptions,
    "advection": AdvectionOptions,
    "steps": StepsOptions,
    "recurrent": RecurrentOptions,
    "video_transformer": VideoTransformerOptions,
    "simvp": SimVPOptions,
}

CLASSES = {  # imported when built: torch is slow to load
    "recurrent": ("models.recurrent.model", "Recurrent"),
    "video_transformer": ("models.video_transformer.model", "VideoTransformer"),
    "simvp": ("models.simvp.model", "SimVP"),
}


def build(
    name: str,
    options: BaseModel,
    *,
    channels_in: int,
    channels_out: int,
    history: int,
    horizon: int,
    step_minutes: float,
) -> nn.Module:
    """A new learned model with random weights that forecasts persistence until it is trained.

    Draws from torch's global generator. Raises ValueError for a name that is not in `LEARNED`, options of another
    model, or sizes that cannot be.
    """
    if name not in CLASSES:
        raise ValueError(f"model {name!r} cannot be built: allowed are {', '.join(CLASSES)}")
    if not isinstance(options, OPTIONS[name]):
        raise ValueError(f"model {name!r} takes {OPTIONS[name].__name__}, got {type(options).__name__}")
    module, class_name = CLASSES[name]
    sizes = Sizes(channels_in, channels_out, history, horizon, step_minutes)
    model: nn.Module = getattr(import_module(module), class_name)(options, sizes)
    return model
