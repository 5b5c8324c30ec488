"""Reflectivity as rain rate, by Z = a R^b with Z in mm6 m-3 and R in mm/h."""

from __future__ import annotations

import numpy as np


def rain_rate(dbz: np.ndarray, z_r: tuple[float, float]) -> np.ndarray:
    """Return the rain rate in mm/h of a reflectivity in dBZ."""
    a, b = z_r
    return np.asarray((10 ** (np.asarray(dbz, np.float64) / 10) / a) ** (1 / b))
