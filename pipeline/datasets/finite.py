"""Guards of what stages read and write: no statistic, weight, forecast or score is ever an infinity or NaN."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fieldcast.pipeline.errors import InputError

AGAIN = "run the ingest stage again"
OUTLIERS = "look for outliers in the training period (data/prepared/quality.json)"


def require_finite(
    where: object, name: str, values: np.ndarray | float, fix: str = OUTLIERS, dims: Sequence[str] = ()
) -> None:
    """Raise `InputError` where a value is infinite or NaN.

    Its line has the file `where`, the `name` of the variable or array, the first such value with its place along
    `dims`, how many there are, and the `fix`.
    """
    array = np.asarray(values)
    bad = ~np.isfinite(array)
    if not bad.any():
        return
    place = np.unravel_index(np.flatnonzero(bad)[0], array.shape)
    named = zip(dims or [f"axis {axis}" for axis in range(array.ndim)], place, strict=True)
    at = ", ".join(f"{dim} {index}" for dim, index in named)
    raise InputError(
        f"{where}: {name} is {array[place]}{f' at {at}' if at else ''} ({np.count_nonzero(bad)} of {array.size} "
        f"values), expected finite numbers: nothing is written; {fix}"
    )


def refuse_infinite(where: object, name: str, frames: np.ndarray, times: np.ndarray, fix: str = AGAIN) -> None:
    """Raise `InputError` where `frames` (..., y, x) at `times` (...) have an infinite value; NaN is a missing one."""
    bad = np.isinf(frames)
    if bad.any():
        place = np.unravel_index(np.flatnonzero(bad)[0], bad.shape)
        raise InputError(
            f"{where}: {name} is {frames[place]} at {times[place[:-2]].astype('datetime64[s]')} "
            f"({np.count_nonzero(bad)} such values), expected finite or missing ones: {fix}"
        )
