"""STEPS: each member extrapolates the latest field along a perturbed motion and replaces its fine scales by noise.

Bowler et al. (2006) and Seed et al. (2013), as pysteps does them (Pulkkinen et al. 2019): a cascade of scales in dB, an
autoregression of order 2 a scale, noise with the field's own spectrum, and the field's own distribution of values.
"""

import contextlib
import io
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from threading import Lock

import dask.config
import numpy as np
import torch
from numpy.typing import NDArray

from fieldcast.models.layers.latest import carried_forward, latest_valid
from fieldcast.models.layers.motion import carried_on, motion
from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.models.layers.reference import Case
from fieldcast.models.steps.options import MIN_LEVELS, StepsOptions

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]

MISSING = "models of kind steps need pysteps: pip install fieldcast[advection] (it is compiled: needs a C compiler)"
ORDER = 2  # of the autoregression, which needs one frame more
BELOW_DRY_DB = 5.0  # how far below the threshold dry cells lie
MIN_WET_CELLS = 10  # in each frame: fewer give no spectrum

ONE_AT_A_TIME = Lock()  # pysteps seeds numpy's global generator, and its prints go through the process's own stream


@cache
def load_steps() -> Callable[..., Array64]:
    """Return pysteps' STEPS, without what it prints while loading; raise ValueError if it is not installed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from pysteps.nowcasts.steps import forecast as steps
    except ImportError as error:
        raise ValueError(f"{MISSING}: {error}") from error
    return steps  # type: ignore[no-any-return]


def forecast(
    history: Array32,
    horizon: int,
    *,
    seconds: NDArray[np.int64],
    spacing_km: float,
    step_minutes: float,
    options: StepsOptions,
) -> Array32:
    """Return an ensemble (b, m, horizon, c, h, w) of a history (b, t, c, h, w), in its units.

    `seconds` (b,) since 1970 of the init times seed the noise. A field that is dry, fewer than 8 cells wide or without
    motion to be seen is persistence in all members. What the motion brings in over the border goes on with each
    member's values at its edge. NaN where no frame of the history is valid. Raises ValueError when pysteps is not
    installed.
    """
    load_steps()  # fails on the first call, not on the first rain
    latest = latest_valid(history)
    out = np.empty((len(history), options.members, horizon, *latest.shape[1:]), dtype=np.float32)
    for sample, channel in np.ndindex(*latest.shape[:2]):
        drawn = _field(history[sample, :, channel], horizon, int(seconds[sample]), spacing_km, step_minutes, options)
        stays = np.isnan(latest[sample, channel]) | np.isnan(drawn).all()
        out[sample, :, :, channel] = np.where(stays, latest[sample, channel], _carried_on(drawn))
    return out


def _carried_on(drawn: Array64) -> Array64:
    """Return members (m, horizon, h, w) whose unknown cells go on with the values of the nearest known ones."""
    complete: Array64 = carried_on(torch.from_numpy(drawn)).numpy()
    return complete


def _field(
    history: Array32, horizon: int, seconds: int, spacing_km: float, step_minutes: float, options: StepsOptions
) -> Array64:
    """Return the members of one field, (m, horizon, h, w); NaN asks for persistence."""
    nothing = np.full((options.members, horizon, *history.shape[1:]), np.nan)
    frames = carried_forward(history)[-ORDER - 1 :]
    levels = min(options.cascade_levels, int(np.log2(min(history.shape[1:]))))
    if (
        levels < MIN_LEVELS
        or len(frames) <= ORDER
        or (frames >= options.dry_below).sum(axis=(1, 2)).min() < MIN_WET_CELLS
    ):
        return nothing
    flow = motion(history[None], MotionOptions(frames=options.frames, dry_below=options.dry_below))[0].double().numpy()
    if not flow.any():
        return nothing
    with ONE_AT_A_TIME, _undisturbed(), dask.config.set(scheduler="synchronous"):
        drawn = load_steps()(
            decibels(frames, options.dry_below),
            flow,
            horizon,
            n_ens_members=options.members,
            n_cascade_levels=levels,
            precip_thr=10 * np.log10(options.dry_below),
            kmperpixel=spacing_km,
            timestep=step_minutes,
            seed=seconds % 2**32,
        )
    return amounts(drawn, options.dry_below)


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


def members(history: Array32, case: Case) -> Array32:
    """Return the members (b, m, horizon, c, h, w), seeded by the init times."""
    assert isinstance(case.options, StepsOptions)
    return forecast(
        history,
        case.horizon,
        seconds=case.init_times.astype("datetime64[s]").astype(np.int64),
        spacing_km=case.spacing_km,
        step_minutes=float(case.step / np.timedelta64(1, "m")),
        options=case.options,
    )
