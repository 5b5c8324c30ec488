"""Nowcasts by a cascade of scales, as pysteps does them: what STEPS and S-PROG share.

Fields go in and come out in dB; values of a field that is dry, small or without motion are persistence.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock
from typing import NamedTuple, Protocol

import dask.config
import numpy as np
import torch
from numpy.typing import NDArray

from fieldcast.models.layers.cascade_options import MIN_LEVELS, CascadeOptions
from fieldcast.models.layers.latest import carried_forward, latest_valid
from fieldcast.models.layers.motion import carried_on, motion
from fieldcast.models.layers.motion_options import MotionOptions

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]

MISSING = (
    "models of kind steps and sprog need pysteps: pip install fieldcast[advection] (it is compiled: needs a C compiler)"
)
ORDER = 2  # of the autoregression, which needs one frame more
BELOW_DRY_DB = 5.0  # how far below the threshold dry cells lie
MIN_WET_CELLS = 10  # in each frame: fewer give no spectrum

ONE_AT_A_TIME = Lock()  # pysteps seeds numpy's global generator, and its prints go through the process's own stream


class Inputs(NamedTuple):
    """What pysteps forecasts one field from."""

    frames: Array64  # (3, h, w) in dB
    flow: Array64  # (2, h, w) in cells a step
    levels: int  # of the cascade


class Nowcast(Protocol):
    """A method of pysteps, bound to its options."""

    def __call__(self, inputs: Inputs, sample: int, /) -> Array64:
        """Return the members (m, horizon, h, w) in dB of a field of the sample; NaN beyond what flows in."""


@cache
def load_pysteps(method: str) -> Callable[..., Array64]:
    """Return a method of pysteps, without what it prints while loading; raise ValueError if it is not installed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pysteps.nowcasts.interface import get_method

            return get_method(method)  # type: ignore[no-any-return]
    except ImportError as error:
        raise ValueError(f"{MISSING}: {error}") from error


def nowcasts(history: Array32, horizon: int, members: int, options: CascadeOptions, nowcast: Nowcast) -> Array32:
    """Return members (b, m, horizon, c, h, w) of a history (b, t, c, h, w), in its units.

    A field that is dry, fewer than 8 cells wide or without motion to be seen is persistence in all members. What the
    motion brings in over the border goes on with each member's values at its edge. NaN where no frame of the history
    is valid.
    """
    latest = latest_valid(history)
    out = np.empty((len(history), members, horizon, *latest.shape[1:]), dtype=np.float32)
    for sample, channel in np.ndindex(*latest.shape[:2]):
        stays = latest[sample, channel]
        inputs = inputs_of(history[sample, :, channel], options)
        if inputs is None:
            out[sample, :, :, channel] = stays
            continue
        with ONE_AT_A_TIME, _undisturbed(), dask.config.set(scheduler="synchronous"):
            drawn = nowcast(inputs, sample)
        complete = bordered(amounts(drawn, options.dry_below))
        out[sample, :, :, channel] = np.where(np.isnan(stays), stays, complete)
    return out


def inputs_of(history: Array32, options: CascadeOptions) -> Inputs | None:
    """Return what a field (t, h, w) is forecast from; None asks for persistence."""
    frames = carried_forward(history)[-ORDER - 1 :]
    levels = min(options.cascade_levels, int(np.log2(min(history.shape[1:]))))
    if (
        levels < MIN_LEVELS
        or len(frames) <= ORDER
        or (frames >= options.dry_below).sum(axis=(1, 2)).min() < MIN_WET_CELLS
    ):
        return None
    flow = motion(history[None], MotionOptions(frames=options.frames, dry_below=options.dry_below))[0].double().numpy()
    return Inputs(decibels(frames, options.dry_below), flow, levels) if flow.any() else None


def bordered(fields: Array64) -> Array64:
    """Return fields (m, horizon, h, w) whose unknown cells go on with the values of the nearest known ones."""
    complete: Array64 = carried_on(torch.from_numpy(fields)).numpy()
    return complete


def decibels(amount: Array64, dry_below: float) -> Array64:
    """Return 10 log10 of amounts; dry values are `BELOW_DRY_DB` below the threshold."""
    wet = 10 * np.log10(np.maximum(amount, dry_below))
    return np.where(amount >= dry_below, wet, 10 * np.log10(dry_below) - BELOW_DRY_DB)


def amounts(values: Array64, dry_below: float) -> Array64:
    """Return the inverse of `decibels`: 0 where dry, NaN where NaN."""
    return np.where(values < 10 * np.log10(dry_below), 0.0, 10 ** (values / 10))


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Drop prints and warnings of pysteps, and restore numpy's global generator."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        np.random.set_state(state)  # noqa: NPY002
