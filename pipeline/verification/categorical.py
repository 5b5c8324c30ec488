"""Scores of events: contingency tables of 'the value is at or above a threshold'."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.verification.ratios import ratio

SUMS = ("hits", "misses", "false_alarms", "correct_negatives")


def contingency_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    thresholds: Sequence[float],
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return the four counts of each frame's valid cells for each threshold, by the names in `SUMS`.

    The arrays are `(frame, y, x)`, `valid` boolean; an event is `value >= threshold` (same units as the fields), NaN
    never is one. Each count is float64 `(frame, threshold)`, its cells weighted by their row's weight in `rows`
    (without it by 1), and the four add up to the weight of the valid cells.
    """
    known = _pack(valid)
    total = _weigh(known, rows)
    shape = (len(valid), len(thresholds))
    hits, forecast_events, observed_events = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for k, threshold in enumerate(thresholds):
        forecast_event, observed_event = _pack(forecast >= threshold) & known, _pack(observed >= threshold) & known
        hits[:, k] = _weigh(forecast_event & observed_event, rows)
        forecast_events[:, k] = _weigh(forecast_event, rows)
        observed_events[:, k] = _weigh(observed_event, rows)
    return {
        "hits": hits,
        "misses": observed_events - hits,
        "false_alarms": forecast_events - hits,
        "correct_negatives": total[:, None] - forecast_events - observed_events + hits,
    }


def csi(sums: xr.Dataset) -> xr.DataArray:
    """Return the critical success index, hits / (hits + misses + false alarms): 0 to 1, 1 is perfect.

    Counts are pooled over init times first. NaN where the event was neither forecast nor observed.
    Wilks (2019), eq. 9.8 (threat score).
    """
    hits, misses, false_alarms = _pooled(sums)
    return ratio(hits, hits + misses + false_alarms)


def pod(sums: xr.Dataset) -> xr.DataArray:
    """Return the probability of detection, hits / (hits + misses): 0 to 1, 1 is perfect.

    Counts are pooled over init times first. NaN where the event was never observed. Wilks (2019), eq. 9.11.
    """
    hits, misses, _ = _pooled(sums)
    return ratio(hits, hits + misses)


def far(sums: xr.Dataset) -> xr.DataArray:
    """Return the false alarm ratio, false alarms / (hits + false alarms): 0 to 1, 0 is perfect.

    Counts are pooled over init times first. NaN where the event was never forecast. Wilks (2019), eq. 9.12.
    """
    hits, _, false_alarms = _pooled(sums)
    return ratio(false_alarms, hits + false_alarms)


def frequency_bias(sums: xr.Dataset) -> xr.DataArray:
    """Return the frequency bias, (hits + false alarms) / (hits + misses): 1 is perfect, above 1 too frequent.

    Counts are pooled over init times first. NaN where the event was never observed. Wilks (2019), eq. 9.10.
    """
    hits, misses, false_alarms = _pooled(sums)
    return ratio(hits + false_alarms, hits + misses)


def pofd(sums: xr.Dataset) -> xr.DataArray:
    """Return the probability of false detection, false alarms / (false alarms + correct negatives): 0 is perfect.

    Counts are pooled over init times first. NaN where the event was always observed. Wilks (2019), ch. 9.
    """
    false_alarms, correct_negatives = (sums[name].sum(INIT_TIME) for name in SUMS[2:])
    return ratio(false_alarms, false_alarms + correct_negatives)


def ets(sums: xr.Dataset) -> xr.DataArray:
    """Return the equitable threat score, CSI less the hits that chance gives: −1/3 to 1, 1 is perfect, 0 no skill.

    (hits − c) / (hits + misses + false alarms − c) with c = (hits + misses) (hits + false alarms) / n, of counts pooled
    over init times. NaN where the event was never or always forecast and observed. Wilks (2019), ch. 9, Gilbert score.
    """
    hits, misses, false_alarms = _pooled(sums)
    n = hits + misses + false_alarms + sums[SUMS[3]].sum(INIT_TIME)
    chance = ratio((hits + misses) * (hits + false_alarms), n)
    return ratio(hits - chance, hits + misses + false_alarms - chance)


def hss(sums: xr.Dataset) -> xr.DataArray:
    """Return the Heidke skill score, the share of right forecasts against that of chance: −1 to 1, 1 is perfect.

    2 (a d − b c) / ((a + c)(c + d) + (a + b)(b + d)) with a hits, b false alarms, c misses and d correct negatives,
    pooled over init times. NaN where the event was never or always forecast and observed. Wilks (2019), ch. 9.
    """
    a, c, b = _pooled(sums)
    d = sums[SUMS[3]].sum(INIT_TIME)
    return ratio(2 * (a * d - b * c), (a + c) * (c + d) + (a + b) * (b + d))


def sedi(sums: xr.Dataset) -> xr.DataArray:
    """Return the symmetric extremal dependence index, also for rare events: −1 to 1, 1 is perfect, 0 no skill.

    (ln F − ln H − ln(1 − F) + ln(1 − H)) / (ln F + ln H + ln(1 − F) + ln(1 − H)) with H = `pod` and F = `pofd`.
    NaN where either of them is 0 or 1 or undefined. Ferro & Stephenson (2011), Wea. Forecasting 26, 699–713.
    """
    hit, false = (rate.where((rate > 0) & (rate < 1)) for rate in (pod(sums), pofd(sums)))
    if_forecast: xr.DataArray = xr.ufuncs.log(false) - xr.ufuncs.log(hit)
    if_not: xr.DataArray = xr.ufuncs.log(1 - false) - xr.ufuncs.log(1 - hit)
    scale: xr.DataArray = xr.ufuncs.log(false * hit) + xr.ufuncs.log((1 - false) * (1 - hit))
    return (if_forecast - if_not) / scale


def _pack(cells: np.ndarray) -> np.ndarray:
    """Return booleans `(frame, y, x)` as bits `(frame, y, byte)`, the last byte of a row filled up with zeros."""
    return np.packbits(cells, axis=2)


def _weigh(bits: np.ndarray, rows: np.ndarray | None) -> np.ndarray:
    """Return the number of bits set in each frame, each weighted by its row's weight."""
    counts = np.bitwise_count(bits)
    if rows is None:
        return np.asarray(counts.sum(axis=(1, 2), dtype=np.uint32).astype(np.float64))
    return np.asarray(counts.sum(axis=2, dtype=np.uint32) @ rows)


def _pooled(sums: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    hits, misses, false_alarms = (sums[name].sum(INIT_TIME) for name in SUMS[:3])
    return hits, misses, false_alarms
