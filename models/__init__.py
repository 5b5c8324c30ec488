"""Forecast models by name: references, and networks that learn.

Tensor letters, everywhere in this package: b batch, t time, c channel, h height, w width, d feature, n token (or cell).

A learned model maps `history (b, t, c_in, h, w)` to `(b, horizon, c_out, h, w)`, or to m members of that, `(b, m,
horizon, c_out, h, w)`, in normalised values; NaN marks a missing cell; its targets are the first `c_out` input
channels. A reference works in physical units, from numpy arrays to numpy arrays.
Importing this package loads neither torch nor pysteps.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel

from fieldcast.models.advection.options import AdvectionOptions
from fieldcast.models.climatology.options import ClimatologyOptions
from fieldcast.models.damped_persistence.options import DampedPersistenceOptions
from fieldcast.models.lagrangian_regression.options import LagrangianRegressionOptions
from fieldcast.models.layers.sizes import Sizes
from fieldcast.models.linear.options import LinearOptions
from fieldcast.models.persistence.options import PersistenceOptions
from fieldcast.models.recurrent.options import RecurrentOptions
from fieldcast.models.simvp.options import SimVPOptions
from fieldcast.models.sprog.options import SprogOptions
from fieldcast.models.steps.options import StepsOptions
from fieldcast.models.unet.options import UNetOptions
from fieldcast.models.video_transformer.options import VideoTransformerOptions

if TYPE_CHECKING:
    from torch import nn

    from fieldcast.models.layers.reference import Reference


@dataclass(frozen=True)
class Kind:
    """One kind of model: its options, and its code in `models/<kind>/`, imported at first use: torch loads slowly."""

    options: type[BaseModel]
    network: str | None = None  # class in `<kind>.model` of a kind that is learned; None: a reference
    fitted: bool = False  # a reference whose module has `fit`
    fitted_on: int | None = None  # init times at most, evenly spread over the training period; None: all
    cross_fitted: bool = False  # fits its training period closely: as a base, samples get it fitted without their part
    in_torch: bool = False  # a reference that uses all cores by itself
    needs_pysteps: bool = False
    one_at_a_time: bool = False  # within a process: several run side by side in processes, not in threads


KINDS: dict[str, Kind] = {
    "persistence": Kind(PersistenceOptions),
    "climatology": Kind(ClimatologyOptions, fitted=True),
    "damped_persistence": Kind(DampedPersistenceOptions, fitted=True),
    "advection": Kind(AdvectionOptions, in_torch=True),
    "lagrangian_regression": Kind(LagrangianRegressionOptions, fitted=True, fitted_on=400, in_torch=True),
    "linear": Kind(LinearOptions, fitted=True, fitted_on=4000, cross_fitted=True),
    "sprog": Kind(SprogOptions, needs_pysteps=True, one_at_a_time=True),
    "steps": Kind(StepsOptions, needs_pysteps=True, one_at_a_time=True),
    "recurrent": Kind(RecurrentOptions, network="Recurrent"),
    "video_transformer": Kind(VideoTransformerOptions, network="VideoTransformer"),
    "simvp": Kind(SimVPOptions, network="SimVP"),
    "unet": Kind(UNetOptions, network="UNet"),
}
OPTIONS: dict[str, type[BaseModel]] = {name: kind.options for name, kind in KINDS.items()}
REFERENCES = tuple(name for name, kind in KINDS.items() if kind.network is None)
LEARNED = tuple(name for name, kind in KINDS.items() if kind.network is not None)
NEEDS_PYSTEPS = tuple(name for name, kind in KINDS.items() if kind.needs_pysteps)


def scheduler_of(kind: str) -> str | None:
    """Return where forecasts of several init times run best: None for threads, 'synchronous' or 'processes'."""
    if KINDS[kind].network is not None or KINDS[kind].in_torch:
        return "synchronous"  # torch uses all cores by itself
    return "processes" if KINDS[kind].one_at_a_time else None


def reference(kind: str) -> Reference:
    """Return the module of a reference, which has `members` and, where `KINDS[kind].fitted`, `fit`."""
    if kind not in REFERENCES:
        raise ValueError(f"{kind!r} is no reference: allowed are {', '.join(REFERENCES)}")
    return cast("Reference", import_module(f"{__name__}.{kind}.forecast"))


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
    """Return a new learned model with random weights that forecasts persistence until it is trained.

    Draws from torch's global generator. Raises ValueError for a name that is not in `LEARNED`, options of another
    model, or sizes that cannot be.
    """
    if name not in LEARNED:
        raise ValueError(f"model {name!r} cannot be built: allowed are {', '.join(LEARNED)}")
    if not isinstance(options, OPTIONS[name]):
        raise ValueError(f"model {name!r} takes {OPTIONS[name].__name__}, got {type(options).__name__}")
    sizes = Sizes(channels_in, channels_out, history, horizon, step_minutes)
    module = import_module(f"{__name__}.{name}.model")
    model: nn.Module = getattr(module, KINDS[name].network or "")(options, sizes)
    return model
