"""Blocks of a series that resembles itself in time: how long, drawn how, and what they make too narrow."""

from __future__ import annotations

import math

import numpy as np

BLOCKS = 8  # that remain at least: fewer give no standard deviation to speak of
LONGEST_MEMORY = 0.9  # the largest correlation of neighbours that is allowed for: more looks like a trend
REACH = 200  # steps after which such a correlation is gone: 0.9²⁰⁰ = 7e-10


def block_length(series: np.ndarray, least: int = 1) -> int:
    """Return how many neighbours of `series` `(series, n)` or `(n,)` are drawn together: the largest of the series'.

    At least `least`, and at most as many as leave `BLOCKS` blocks. Politis and White (2004), Econometric Reviews 23,
    section 3, with the constant corrected by Patton, Politis and White (2009), Econometric Reviews 28.
    """
    rows = np.atleast_2d(series)
    longest = max(1, rows.shape[1] // BLOCKS)
    optimal = max(optimal_block(row) for row in rows)
    return int(min(longest, max(least, math.ceil(optimal))))


def optimal_block(series: np.ndarray) -> float:
    """Return the length that minimises the error of the circular block bootstrap's variance of the mean of `series`.

    (2 G² / D)^⅓ n^⅓, with D = 4/3 g(0)²; sums of autocovariances by a flat-top window of twice the lag after which the
    correlations are negligible. 1 for a constant series. Patton, Politis and White (2009), eq. 4 and 9.
    """
    n = series.size
    apart = series - series.mean()
    if n < 3 or not np.ptp(series) > 0:
        return 1.0
    quiet = max(5, math.ceil(math.sqrt(math.log10(n))))  # lags in a row that have to be negligible
    last = min(n - 1, math.ceil(math.sqrt(n)) + quiet)
    covariances = np.array([apart[: n - k] @ apart[k:] for k in range(last + 1)]) / n
    reach = min(last, 2 * _memory(covariances[1:] / covariances[0], 2 * math.sqrt(math.log10(n) / n), quiet))
    lags = np.arange(-reach, reach + 1)
    window = np.clip(2 * (1 - np.abs(lags) / reach), 0, 1) * covariances[np.abs(lags)]
    slope, level = (np.abs(lags) * window).sum(), window.sum()
    return float((2 * slope**2 / (4 / 3 * level**2) * n) ** (1 / 3)) if level else float(n)


def draws(n: int, block: int, resamples: int, seed: int) -> np.ndarray:
    """Return how often each of `n` times is drawn, float64 `(resamples, n)`, each row adding up to `n`.

    Blocks start anywhere and run on from the last time to the first; the last block is cut. Equal for equal arguments.
    Politis and Romano (1992), circular block bootstrap.
    """
    starts = np.random.default_rng(seed).integers(n, size=(resamples, math.ceil(n / block)))
    drawn = ((starts[..., None] + np.arange(block)) % n).reshape(resamples, -1)[:, :n]
    cells = drawn + n * np.arange(resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=resamples * n).reshape(resamples, n).astype(np.float64)


def too_narrow(series: np.ndarray, steps: np.ndarray, block: int) -> np.ndarray:
    """Return by what factor block resampling underrates the variance of the mean of each column of `series` `(n, k)`.

    Blocks cut the dependence at their ends and vary about the sample's mean instead of the true one. The factor is the
    true variance over the expected bootstrap variance for a first-order autoregressive process, seen at `steps` `(n,)`,
    ascending whole numbers with gaps, that has the column's own correlation over one step, corrected for the bias of a
    short series (Kendall 1954, Biometrika 41). Without correlation it is n / (n − block). 1 for a constant column.
    """
    n = len(series)
    apart = np.nan_to_num(series - series.mean(0))
    square = (apart**2).sum(0)
    rho = _correlation_of_neighbours(apart, steps)
    mean = (_pairs_apart(steps)[:, None] * rho ** np.arange(REACH)[:, None]).sum(0) / n**2
    inside = np.zeros_like(rho)  # mean variance of the sum of a block
    for lag in range(block):
        reached = np.bincount(np.minimum(np.abs(np.roll(steps, -lag) - steps), REACH), minlength=REACH + 1)
        powers = reached[:REACH, None] * rho ** np.arange(REACH)[:, None]
        inside += (2 if lag else 1) * (block - lag) * powers.sum(0) / n
    bootstrap = (inside - block**2 * mean) / (n * block)
    return np.where(square > 0, mean / bootstrap, 1.0)


def _pairs_apart(steps: np.ndarray) -> np.ndarray:
    """Return how many pairs of ascending `steps`, in both orders, lie 0, 1, … `REACH` − 1 apart."""
    ends = steps[:, None] + np.arange(REACH)
    pairs = (np.searchsorted(steps, ends, side="right") - np.searchsorted(steps, ends)).sum(axis=0)
    return np.asarray(pairs * np.where(np.arange(REACH) > 0, 2, 1))


def _correlation_of_neighbours(apart: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """Return the correlation over one step of each column of departures from the mean, at least 0."""
    n, square = len(apart), (apart**2).sum(0)
    pairs = np.diff(steps) == 1
    products = (apart[1:] * apart[:-1])[pairs].sum(0) * n / (pairs.sum() + 1)
    seen = products / np.where(square > 0, square, 1)
    correlation: np.ndarray = np.clip(seen + (1 + 3 * seen) / n, 0, LONGEST_MEMORY)
    return correlation


def _memory(correlations: np.ndarray, negligible: float, quiet: int) -> int:
    """Return the lag, at least 1, after which `quiet` correlations in a row (lag 1 first) are negligible."""
    small = np.abs(correlations) < negligible
    for lag in range(small.size - quiet + 1):
        if small[lag : lag + quiet].all():
            return max(1, lag)
    loud = np.flatnonzero(~small)
    return int(loud[-1]) + 1 if loud.size else 1
