"""Scores of events: contingency tables of 'the value is at or above a threshold'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from pipeline.schema import INIT_TIME

SUMS = ("hits", "misses", "false_alarms", "correct_negatives")


def contingency_sums(
    forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray, thresholds: Sequence[float]
) -> dict[str, np.ndarray]:
    """Return the four counts of each frame's valid cells for each threshold, by the names in `SUMS`.

    The arrays are `(frame, y, x)`, `valid` boolean; an event is `value >= threshold` (same units as the fields), NaN
    never is one. Each count is float64 `(frame, threshold)` and the four add up to the number of valid cells.
    """
    n = valid.sum(axis=(1, 2), dtype=np.float64)
    shape = (n.size, len(thresholds))
    hits, forecast_events, observed_events = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for k, threshold in enumerate(thresholds):
        forecast_event, observed_event = (forecast >= threshold) & valid, (observed >= threshold) & valid
        hits[:, k] = (forecast_event & observed_event).sum(axis=(1, 2))
        forecast_events[:, k] = forecast_event.sum(axis=(1, 2))
        observed_events[:, k] = observed_event.sum(axis=(1, 2))
    return {
        "hits": hits,
        "misses": observed_events - hits,
        "false_alarms": forecast_events - hits,
        "correct_negatives": n[:, None] - forecast_events - observed_events + hits,
    }


def csi(sums: xr.Dataset) -> xr.DataArray:
    """Return the critical success index, hits / (hits + misses + false alarms): 0 to 1, 1 is perfect.

    Counts are pooled over init times first. NaN where the event was neither forecast nor observed.
    Wilks (2019), eq. 9.8 (threat score).
    """
    hits, misses, false_alarms = _pooled(sums)
    return _ratio(hits, hits + misses + false_alarms)


def pod(sums: xr.Dataset) -> xr.DataArray:
    """Return the probability of detection, hits / (hits + misses): 0 to 1, 1 is perfect.

    Counts are pooled over init times first. NaN where the event was never observed. Wilks (2019), eq. 9.11.
    """
    hits, misses, _ = _pooled(sums)
    return _ratio(hits, hits + misses)


def far(sums: xr.Dataset) -> xr.DataArray:
    """Return the false alarm ratio, false alarms / (hits + false alarms): 0 to 1, 0 is perfect.

    Counts are pooled over init times first. NaN where the event was never forecast. Wilks (2019), eq. 9.12.
    """
    hits, _, false_alarms = _pooled(sums)
    return _ratio(false_alarms, hits + false_alarms)


def frequency_bias(sums: xr.Dataset) -> xr.DataArray:
    """Return the frequency bias, (hits + false alarms) / (hits + misses): 1 is perfect, above 1 too frequent.

    Counts are pooled over init times first. NaN where the event was never observed. Wilks (2019), eq. 9.10.
    """
    hits, misses, false_alarms = _pooled(sums)
    return _ratio(hits + false_alarms, hits + misses)


def _pooled(sums: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    hits, misses, false_alarms = (sums[name].sum(INIT_TIME) for name in SUMS[:3])
    return hits, misses, false_alarms


def _ratio(part: xr.DataArray, whole: xr.DataArray) -> xr.DataArray:
    return part / whole.where(whole > 0)
