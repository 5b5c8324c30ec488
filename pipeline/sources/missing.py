"""Values that are none, by one rule: fill values, infinities, and what lies outside the range that a file declares.

All of them become NaN as they are read. They are missing cells, and counted beside the gaps that an archive has by its
own account (NaN, and what it declares to be fill): a value refused may be a fault, a gap is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from fieldcast.pipeline.errors import InputError

IMPOSSIBLE = 1e30  # from here on no physical quantity: default fill values (9.97e36), 1e31, infinity
DEFAULT_FILLS = {
    "i2": -32767,
    "i4": -2147483647,
    "i8": -9223372036854775806,
    "u2": 65535,
    "u4": 4294967295,
    "u8": 2**64 - 2,
}
Limits = tuple[float | None, float | None]


def without_impossible(
    values: np.ndarray, limits: Limits = (None, None), fill: float | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return `values` (frame, ...) as float32, NaN where they are no value, and how many of each frame were refused.

    No value is what is not finite, 1e30 or beyond, outside `limits`, or `fill`; NaN is no value and not refused.
    `limits` are the lowest and the highest valid value in the units of `values`; None is no limit.
    """
    array = np.asarray(values, np.float64)
    with np.errstate(invalid="ignore"):
        bad = ~(np.abs(array) < IMPOSSIBLE)
        low, high = limits
        margin = 1e-6 * max((abs(limit) for limit in limits if limit is not None), default=0.0)  # packed in float32
        if low is not None:
            bad |= array < low - margin
        if high is not None:
            bad |= array > high + margin
        if fill is not None:
            bad |= array == fill
    refused = bad & ~np.isnan(array)
    return np.where(bad, np.nan, array).astype(np.float32), refused.reshape(len(array), -1).sum(axis=1)


def limits_of(attributes: Mapping[Any, Any], encoding: Mapping[Any, Any]) -> Limits:
    """Return the lowest and highest valid value that a variable declares, in unpacked units.

    Limits of packed data are packed as well if they are integers (CF 8.1, NetCDF user guide).
    """
    declared = attributes.get("valid_range")
    low, high = (None, None) if declared is None or np.size(declared) != 2 else np.ravel(declared)
    declared_limits = attributes.get("valid_min", low), attributes.get("valid_max", high)
    limits = [None if limit is None or not np.isfinite(limit).all() else limit for limit in declared_limits]
    unpacked = sorted(_unpacked(limit, encoding) for limit in limits if limit is not None)
    if len(unpacked) == 2:
        return unpacked[0], unpacked[1]
    scale = float(np.ravel(encoding.get("scale_factor", 1.0))[0])
    one = unpacked[0] if unpacked else None
    return (one, None) if (limits[0] is not None) == (scale > 0) else (None, one)


def require_numbers(path: str, name: str, array: xr.DataArray) -> None:
    """Raise `InputError` for a variable that holds no numbers, or whose packing or limits make none of them."""
    for key in ("scale_factor", "add_offset"):
        value = array.encoding.get(key, 1.0)
        number = np.ravel(value)[0] if np.size(value) == 1 else np.nan
        if np.asarray(number).dtype.kind not in "iuf" or not np.isfinite(number) or (key[0] == "s" and number == 0):
            raise InputError(f"{path}: '{name}' has {key} {value}, expected a finite number: correct the file")
    if array.dtype.kind not in "biuf":
        raise InputError(f"{path}: '{name}' is of type {array.dtype}, expected numbers: choose another one")
    low, high = (np.ravel(array.attrs.get(f"valid_{end}", np.nan))[0] for end in ("min", "max"))
    if all(end.dtype.kind in "iuf" for end in map(np.asarray, (low, high))) and low > high:
        raise InputError(f"{path}: '{name}' has valid_min {low} above valid_max {high}: correct the file")


def default_fill(encoding: Mapping[Any, Any]) -> float | None:
    """Return NetCDF's own fill value of integers, unpacked, where a variable declares no other."""
    dtype = np.dtype(encoding.get("dtype", np.float32))
    if dtype.kind not in "iu" or {"_FillValue", "missing_value"} & set(encoding) or dtype.itemsize == 1:
        return None
    return _unpacked(np.array(DEFAULT_FILLS[dtype.str[1:]], dtype)[()], encoding)


def _unpacked(value: Any, encoding: Mapping[Any, Any]) -> float:
    number = np.ravel(value)[0]
    if np.asarray(number).dtype.kind not in "iu" or np.dtype(encoding.get("dtype", np.float32)).kind not in "iu":
        return float(number)
    scale, offset = (
        np.ravel(encoding.get(key, default))[0] for key, default in (("scale_factor", 1), ("add_offset", 0))
    )
    return float(number * float(scale) + float(offset))
