"""Linear regression from principal components: damped persistence plus an increment that the latest weather foretells.

Anomalies from the climatology, of all variables together, each in units of its own spread and weighted by area, are
projected on their leading empirical orthogonal functions (EOFs). For each lead, ridge regression on the components at
several lags and on the hour of the day gives the components of what damped persistence leaves:

forecast = climatology + damping * latest anomaly + sum over k of (predictors @ coefficients)[k] * EOF[k]

The strength of the ridge is found by cross-validation: each of `FOLDS` parts of the training period, in its order, is
forecast with coefficients of the others. (A validation period may be a day or two of one weather, too little to tell.)
An endless ridge is damped persistence itself. The linear inverse model of Penland and Sardeshmukh (1995), J. Climate 8,
is the special case of lag 0 alone, without ridge and hour, fitted at one lead and raised to powers for the others.

A missing cell is taken to be at its climatology. Letters besides those of `models`: k component, p predictor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from einops import rearrange, reduce, repeat
from numpy.typing import NDArray

from fieldcast.models.layers.damping import DampingSums, damping_sums
from fieldcast.models.layers.latest import latest_valid
from fieldcast.models.layers.reference import Case, Training, climatology_at, valid_times
from fieldcast.models.linear.options import LinearOptions

Array32 = NDArray[np.float32]
Array64 = NDArray[np.float64]
Times = NDArray[np.datetime64]

STATES = 1000  # that EOFs are found from, evenly spread over the init times: their matrix takes a second
VALUES = 2**26  # of all of these states, 256 MB
FAINT = 1e-6  # of the first component's variance: components with less are rounding errors
LEAST_ROW = 1e-3  # area weight of a row at a pole
HOURS = 3  # predictors besides the components: sine and cosine of the hour of the day, and 1
FOLDS = 8
STRENGTHS = np.logspace(-3, 3, 13)  # of the ridge, in mean squares of a component


@dataclass(frozen=True)
class Space:
    """Climatology, damping (horizon, c) and EOFs (k, c, h, w) with the weights (c, h) of their cells."""

    climatology: Array32
    damping: Array32
    eofs: Array32
    weights: Array32

    def anomalies(self, fields: Array32, times: Times) -> Array32:
        """Return fields (b, n, c, h, w) less the climatology at `times` (b, n); NaN where missing."""
        return fields - climatology_at(self.climatology, times)

    def damped(self, latest: Array32) -> Array32:
        """Return what is left of the latest anomalies (b, c, h, w) at each lead, (b, horizon, c, h, w); 0 for NaN."""
        return self.damping[:, :, None, None] * np.nan_to_num(latest)[:, None]

    def components(self, anomalies: Array32) -> Array32:
        """Return the components (b, n, k) of anomalies (b, n, c, h, w), those of missing cells taken as 0."""
        functions = rearrange(self.eofs * self.weights[..., None], "k c h w -> k (c h w)")
        states = rearrange(np.nan_to_num(anomalies), "b n c h w -> b n (c h w)")
        return states @ functions.T

    def fields(self, components: Array32) -> Array32:
        """Return the anomalies (b, n, c, h, w) that have these components (b, n, k)."""
        functions = rearrange(self.eofs / self.weights[..., None], "k c h w -> k (c h w)")
        _, channels, height, _ = self.eofs.shape
        return rearrange(components @ functions, "b n (c h w) -> b n c h w", c=channels, h=height)


def members(history: Array32, case: Case) -> Array32:
    """Return the regression as one member, or as all of them alike where quantiles are asked for.

    `pipeline.forecasting.calibration` then moves each to its quantile of the residuals.
    """
    options = case.options
    assert isinstance(options, LinearOptions)
    space = Space(*(case.arrays[name] for name in ("climatology", "damping", "eofs", "weights")))
    x = predictors(history, case.init_times, case.step, space, options.lags)
    increments = np.einsum("bp,fpk->bfk", x, case.arrays["coefficients"])
    latest = space.anomalies(latest_valid(history)[:, None], case.init_times[:, None])[:, 0]
    usual = climatology_at(case.arrays["climatology"], case.valid_times)
    fields = usual + space.damped(latest) + space.fields(increments)
    return repeat(fields.astype(np.float32), "b f c h w -> b m f c h w", m=options.members or 1)


def fit(training: Training) -> tuple[dict[str, Array32], dict[str, Any]]:
    """Return EOFs, damping and coefficients of the training period."""
    options = training.options
    assert isinstance(options, LinearOptions)
    space, count = found_space(training, options.components)
    sums = sums_by_fold(training, space, options.lags, count)
    total = sum(sums[1:], start=sums[0])
    strength = best_strength(sums)
    coefficients = rearrange(total.coefficients(strength), "p (f k) -> f p k", f=training.horizon).astype(np.float32)
    facts = {"components": len(space.eofs), "ridge, by cross-validation": f"{strength:.2g}"}
    names = ("climatology", "damping", "eofs", "weights")
    return {**{name: getattr(space, name) for name in names}, "coefficients": coefficients}, facts


@dataclass(frozen=True)
class RidgeSums:
    """Sums over cases of products of predictors (p, p), of these with what is predicted (p, q), and of its squares."""

    squares: Array64
    products: Array64
    predicted: float

    @classmethod
    def of(cls, x: Array64, y: Array64) -> RidgeSums:
        """Return the sums of cases with predictors (n, p) and what is predicted (n, q)."""
        return cls(x.T @ x, x.T @ y, float((y**2).sum()))

    def __add__(self, other: RidgeSums) -> RidgeSums:
        return RidgeSums(self.squares + other.squares, self.products + other.products, self.predicted + other.predicted)

    def coefficients(self, strength: float) -> Array64:
        """Return the coefficients (p, q) of a ridge of `strength` mean squares of a component.

        The hour's predictors are taken in units of the components' root mean square, so that all are shrunk alike.
        """
        size, cases = len(self.squares), self.squares[-1, -1]  # the last predictor is 1
        level = np.trace(self.squares[:-HOURS, :-HOURS]) / (size - HOURS) or 1.0
        units = np.ones(size)
        units[-HOURS:] = np.sqrt(level / cases)
        scaled = units[:, None] * self.squares * units + strength * level * np.eye(size)
        solved: Array64 = units[:, None] * np.linalg.solve(scaled, units[:, None] * self.products)
        return solved

    def error(self, coefficients: Array64) -> float:
        """Return the sum of squared errors that `coefficients` (p, q) make in these cases."""
        fitted = self.squares @ coefficients - 2 * self.products
        return self.predicted + float((coefficients * fitted).sum())


def best_strength(sums: Sequence[RidgeSums]) -> float:
    """Return the one of `STRENGTHS` with the least error in each part, from the others; the strongest with one part."""
    if len(sums) < 2:
        return float(STRENGTHS[-1])
    errors = np.zeros(len(STRENGTHS))
    for k, left_out in enumerate(sums):
        first, *more = [own for other, own in enumerate(sums) if other != k]
        rest = sum(more, start=first)
        errors += [left_out.error(rest.coefficients(strength)) for strength in STRENGTHS]
    return float(STRENGTHS[np.argmin(errors)])


def sums_by_fold(training: Training, space: Space, lags: Sequence[int], count: int) -> list[RidgeSums]:
    """Return the sums of consecutive parts of the training period, of about equal size; `count` are its init times."""
    folds: dict[int, RidgeSums] = {}
    seen = 0
    for history, target, init_times in training.blocks:
        x = predictors(history, init_times, training.step, space, lags).astype(np.float64)
        left = increments(history, target, init_times, training.step, space)
        y = rearrange(left, "b f k -> b (f k)").astype(np.float64)
        part = (seen + np.arange(len(x))) * FOLDS // count
        for fold in np.unique(part).tolist():
            own = RidgeSums.of(x[part == fold], y[part == fold])
            folds[fold] = folds[fold] + own if fold in folds else own
        seen += len(x)
    return list(folds.values())


def found_space(training: Training, components: int) -> tuple[Space, int]:
    """Return climatology, damping and EOFs of the training period, and how many init times it has."""
    total: DampingSums | None = None
    states: list[Array32] = []
    stride, seen = 1, 0
    most = max(2 * components, min(STATES, VALUES // training.climatology[0].size))
    for history, target, init_times in training.blocks:
        latest = latest_valid(history) - climatology_at(training.climatology, init_times[:, None])[:, 0]
        times = valid_times(init_times, training.horizon, training.step)
        block = damping_sums(latest, target - climatology_at(training.climatology, times))
        total = block if total is None else total + block
        states += [latest[i] for i in range(len(latest)) if (seen + i) % stride == 0]
        seen += len(latest)
        while len(states) > most:
            states, stride = states[::2], 2 * stride
    assert total is not None  # no split is without init times
    anomalies = np.nan_to_num(np.stack(states))
    weights = cell_weights(anomalies, training.rows)
    functions = eofs(rearrange(anomalies * weights[..., None], "n c h w -> n (c h w)"), components)
    shape = dict(zip("chw", anomalies.shape[1:], strict=True))
    space = Space(training.climatology, total.damping(), rearrange(functions, "k (c h w) -> k c h w", **shape), weights)
    return space, seen


def cell_weights(anomalies: Array32, rows: Array32 | None) -> Array32:
    """Return what anomalies (n, c, h, w) are multiplied by to have one spread and to count by area, (c, h)."""
    area = np.ones(anomalies.shape[2]) if rows is None else np.maximum(rows, LEAST_ROW)
    square = reduce(anomalies.astype(np.float64) ** 2, "n c h w -> c h", "mean") @ (area / area.sum())
    spread = np.sqrt(np.where(square > 0, square, 1.0))
    return (np.sqrt(area) / spread[:, None]).astype(np.float32)


def eofs(states: Array32, count: int) -> Array32:
    """Return the leading empirical orthogonal functions (k, d) of states (n, d): orthonormal, at most `count`.

    By the smaller of the two matrices of products, n x n or d x d; fewer where the states have no more variance.
    """
    n, d = states.shape
    products = (states @ states.T if n < d else states.T @ states).astype(np.float64)
    variances, vectors = np.linalg.eigh(products)
    order = [i for i in np.argsort(-variances)[:count] if variances[i] > FAINT * variances.max()]
    leading = vectors[:, order].T.astype(np.float32)
    if not order:
        return np.zeros((1, d), np.float32)  # nothing ever departs from the climatology
    if n < d:
        leading = leading @ states / np.sqrt(variances[order]).astype(np.float32)[:, None]
    functions: Array32 = leading
    return functions


def predictors(history: Array32, init_times: Times, step: np.timedelta64, space: Space, lags: Sequence[int]) -> Array32:
    """Return the predictors (b, p): components at each lag within the history, then the hour of the day and 1."""
    within = [lag for lag in lags if lag < history.shape[1]]
    fields = np.stack([latest_valid(history[:, : history.shape[1] - lag]) for lag in within], axis=1)
    times = init_times[:, None] - step * np.array(within)
    components = rearrange(space.components(space.anomalies(fields, times)), "b n k -> b (n k)")
    day = 2 * np.pi * (init_times.astype("datetime64[s]").astype(np.int64) % 86_400) / 86_400
    return np.concatenate([components, np.stack([np.sin(day), np.cos(day), np.ones(len(day))], axis=1)], axis=1)


def increments(history: Array32, target: Array32, init_times: Times, step: np.timedelta64, space: Space) -> Array32:
    """Return the components (b, horizon, k) of what damped persistence leaves of targets; 0 where these are missing."""
    latest = space.anomalies(latest_valid(history)[:, None], init_times[:, None])[:, 0]
    left = space.anomalies(target, valid_times(init_times, target.shape[1], step)) - space.damped(latest)
    return space.components(left)
