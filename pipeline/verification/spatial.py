"""Scores of neighbourhoods: how well the share of a window covered by an event is forecast."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME

SUMS = ("fss_numerator", "fss_denominator")
MINIMUM_VALID = 0.5


def fraction_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    thresholds: Sequence[float],
    windows: Sequence[tuple[int, int]],
    minimum_valid: float = MINIMUM_VALID,
    rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return Σ(pf − po)² and Σ(pf² + po²) over the windows of each frame, by the names in `SUMS`.

    The arrays are `(frame, y, x)`; `windows` are odd sizes `(y, x)` in cells; the sums are float64
    `(frame, threshold, window)`. There is a window around every cell. Its fraction p is events / valid cells: a missing
    cell is neither an event nor a dry cell, and cells beyond the grid's edge are missing cells like any other. A window
    counts where at least the share `minimum_valid` of its cells is valid; with 1.0 only complete windows count. `rows`
    `(y,)` weights windows by the row of their centre.
    """
    shape = (len(valid), len(thresholds), len(windows))
    numerator, denominator = np.zeros(shape), np.zeros(shape)
    if not windows:
        return dict(zip(SUMS, (numerator, denominator), strict=True))
    weights = [_window_weight(count, window, minimum_valid) for window, count in window_counts(valid, windows)]
    if rows is not None:
        weights = [weight * rows[:, None] for weight in weights]
    for k, threshold in enumerate(thresholds):
        pairs = zip(
            window_counts((forecast >= threshold) & valid, windows),
            window_counts((observed >= threshold) & valid, windows),
            strict=True,
        )
        for s, ((_, forecast_count), (_, observed_count)) in enumerate(pairs):
            numerator[:, k, s] = _weighted_square(forecast_count - observed_count, weights[s])
            denominator[:, k, s] = _weighted_square(forecast_count, weights[s])
            denominator[:, k, s] += _weighted_square(observed_count, weights[s])
    return dict(zip(SUMS, (numerator, denominator), strict=True))


def fss(sums: xr.Dataset) -> xr.DataArray:
    """Return the fractions skill score, 1 − Σ(pf − po)² / Σ(pf² + po²): 0 to 1, 1 is perfect.

    Both sums run over all windows of all init times before the division. NaN where the event was neither forecast
    nor observed. Roberts & Lean (2008), Mon. Wea. Rev. 136, eqs. 5-7; see `fraction_sums` for missing cells.
    """
    numerator, denominator = (sums[name].sum(INIT_TIME) for name in SUMS)
    return 1.0 - numerator / denominator.where(denominator > 0)


def window_counts(cells: np.ndarray, windows: Sequence[tuple[int, int]]) -> list[tuple[tuple[int, int], np.ndarray]]:
    """Return each window with its number of true `cells` around every cell `(frame, y, x)`.

    Windows are odd sizes `(y, x)` in cells; beyond the grid's edge cells are false. One summed-area table serves all.
    """
    margin_y, margin_x = max(y for y, _ in windows) // 2, max(x for _, x in windows) // 2
    frames, ny, nx = cells.shape
    table = np.zeros((frames, ny + 2 * margin_y + 1, nx + 2 * margin_x + 1), np.int32)
    table[:, margin_y + 1 : margin_y + 1 + ny, margin_x + 1 : margin_x + 1 + nx] = cells
    np.cumsum(table, axis=1, out=table)
    np.cumsum(table, axis=2, out=table)
    counts = []
    for y, x in windows:
        low_y, low_x = margin_y - y // 2, margin_x - x // 2
        rows = table[:, low_y + y : low_y + y + ny] - table[:, low_y : low_y + ny]
        counts.append(((y, x), rows[:, :, low_x + x : low_x + x + nx] - rows[:, :, low_x : low_x + nx]))
    return counts


def _window_weight(valid_count: np.ndarray, window: tuple[int, int], minimum_valid: float) -> np.ndarray:
    """Return 1 / valid² where the window counts, else 0: it turns squared counts into squared fractions."""
    counts = (valid_count >= minimum_valid * window[0] * window[1]) & (valid_count > 0)
    return np.where(counts, 1.0 / np.maximum(valid_count, 1).astype(np.float64) ** 2, 0.0)


def _weighted_square(count: np.ndarray, weight: np.ndarray) -> np.ndarray:
    value = count.astype(np.float64)
    value *= value
    return np.asarray(np.einsum("fyx,fyx->f", value, weight))
