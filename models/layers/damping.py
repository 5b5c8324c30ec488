"""Damping of anomalies: the fraction of the latest anomaly that is left at each lead.

For each lead f and channel c, over all cells and init times of the training period,
damping[f, c] = sum(anomaly_init * anomaly_target) / sum(anomaly_init ** 2): least squares through the origin.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from einops import reduce
from numpy.typing import NDArray


@dataclass(frozen=True)
class DampingSums:
    """Sums of products over valid pairs, (horizon, c) each: add those of blocks, then ask for `damping`."""

    init_target: NDArray[np.float64]
    init_init: NDArray[np.float64]

    def __add__(self, other: DampingSums) -> DampingSums:
        return DampingSums(self.init_target + other.init_target, self.init_init + other.init_init)

    def damping(self) -> NDArray[np.float32]:
        """Return the least-squares coefficient (horizon, c); 0 (climatology) without any valid pair."""
        seen = self.init_init > 0
        ratio = np.divide(self.init_target, self.init_init, out=np.zeros_like(self.init_target), where=seen)
        return ratio.astype(np.float32)


def damping_sums(anomaly_init: NDArray[np.float32], anomaly_target: NDArray[np.float32]) -> DampingSums:
    """Return sums of one block of cases: anomalies (n, c, h, w) at init, (n, horizon, c, h, w) at valid times.

    A cell counts for a lead where both of its anomalies are valid (not NaN).
    """
    init = np.where(np.isnan(anomaly_init), 0.0, anomaly_init).astype(np.float64)[:, None]
    target = np.where(np.isnan(anomaly_target), 0.0, anomaly_target).astype(np.float64)
    pair_valid = ~np.isnan(anomaly_target)  # a gap at init is already 0 in every product
    return DampingSums(
        reduce(init * target, "n f c h w -> f c", "sum"),
        reduce(init**2 * pair_valid, "n f c h w -> f c", "sum"),
    )
