"""Labels along a dimension, or of a GRIB message, and those that `source.select` names."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_label(label: Any, wanted: float | str) -> bool:
    """Return whether `wanted` names a label: by its text, or by its number however either is written ('0001' is 1)."""
    if str(label) == str(wanted):
        return True
    try:
        return bool(np.isclose(float(label), float(wanted)))
    except (TypeError, ValueError):
        return False
