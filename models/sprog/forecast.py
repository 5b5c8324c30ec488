"""S-PROG: the latest field, moved along its motion, whose scales fade as fast as each of them is forgotten.

Seed (2003), J. Applied Meteorology 42, as pysteps does it (Pulkkinen et al. 2019): a cascade of scales in dB and an
autoregression of order 2 a scale, as in STEPS but without noise. The values that are left are mapped on the latest
field's distribution, so that heavy rain stays as frequent as it is.
"""

import numpy as np

from fieldcast.models.layers.cascade import Array32, Array64, Inputs, load_pysteps, nowcasts
from fieldcast.models.layers.reference import Case
from fieldcast.models.sprog.options import SprogOptions


def forecast(history: Array32, horizon: int, options: SprogOptions) -> Array32:
    """Return one forecast (b, horizon, c, h, w) of a history (b, t, c, h, w), in its units, as `nowcasts` says.

    Raises ValueError when pysteps is not installed.
    """
    sprog = load_pysteps("sprog")  # fails on the first call, not on the first rain

    def nowcast(inputs: Inputs, sample: int) -> Array64:
        del sample
        return sprog(
            inputs.frames,
            inputs.flow,
            horizon,
            precip_thr=10 * np.log10(options.dry_below),
            n_cascade_levels=inputs.levels,
            probmatching_method="cdf",
        )[None]

    return nowcasts(history, horizon, 1, options, nowcast)[:, 0]


def members(history: Array32, case: Case) -> Array32:
    """Return S-PROG as one member, (b, 1, horizon, c, h, w)."""
    assert isinstance(case.options, SprogOptions)
    return forecast(history, case.horizon, case.options)[:, None]
