"""STEPS: each member extrapolates the latest field along a perturbed motion and replaces its fine scales by noise.

Bowler et al. (2006) and Seed et al. (2013), as pysteps does them (Pulkkinen et al. 2019): a cascade of scales in dB, an
autoregression of order 2 a scale, noise with the field's own spectrum, and the field's own distribution of values.
"""

import numpy as np
from numpy.typing import NDArray

from fieldcast.models.layers.cascade import Array32, Array64, Inputs, load_pysteps, nowcasts
from fieldcast.models.layers.reference import Case
from fieldcast.models.steps.options import StepsOptions


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

    `seconds` (b,) since 1970 of the init times seed the noise; the rest is as `nowcasts` says. Raises ValueError when
    pysteps is not installed.
    """
    steps = load_pysteps("steps")  # fails on the first call, not on the first rain

    def nowcast(inputs: Inputs, sample: int) -> Array64:
        return steps(
            inputs.frames,
            inputs.flow,
            horizon,
            n_ens_members=options.members,
            n_cascade_levels=inputs.levels,
            precip_thr=10 * np.log10(options.dry_below),
            kmperpixel=spacing_km,
            timestep=step_minutes,
            seed=int(seconds[sample]) % 2**32,
        )

    return nowcasts(history, horizon, options.members, options, nowcast)


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
