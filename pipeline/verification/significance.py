"""How sure a score, or a difference between two models, is: resampled init times, intervals by lead, a paired test.

Errors of neighbouring init times resemble each other, so whole blocks of init times are drawn, the same for all
models. Every score is a function of sums over init times: a resampled score is that function of resampled sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np
import xarray as xr
from scipy.stats import t as student

from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, lead_minutes
from fieldcast.pipeline.verification.aggregation import VALID_CRC, field_sums, fields_of, score_arrays, units_of
from fieldcast.pipeline.verification.bootstrap import block_length, draws, too_narrow
from fieldcast.pipeline.verification.orientation import badness

REPLICATE = "replicate"
VALUES_AT_ONCE = 2**22  # of resampled sums held together: 32 MiB
FINITE_SHARE = 0.9  # of the resampled values; with fewer a score is too often undefined for an interval
LOSSES = {"rmse": 2, "mae": 1, "crps": 1}  # means of a loss, once taken to this power: what the paired test is about

Word = Literal["better", "worse", "no difference"]


@dataclass(frozen=True)
class Interval:
    """A score's value with its confidence interval; NaN where undefined."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """The score of `model` minus that of `other` at one lead (minutes); for the mean error of absolute values.

    `word` says what `model` is beside `other`: no difference where the interval holds 0 or is undefined. `p_value` is
    that of the test by Diebold and Mariano, NaN for scores that are not a mean of losses.
    """

    model: str
    other: str
    score: str
    lead: int
    value: float
    low: float
    high: float
    p_value: float
    word: Word

    def reversed(self) -> Difference:
        """Return the same difference seen from the other model."""
        opposite: dict[Word, Word] = {"better": "worse", "worse": "better", "no difference": "no difference"}
        names = replace(self, model=self.other, other=self.model, word=opposite[self.word])
        return replace(names, value=0.0 - self.value, low=0.0 - self.high, high=0.0 - self.low)


@dataclass(frozen=True)
class Evidence:
    """All intervals and paired differences of a comparison, and how they were made."""

    models: list[str]
    confidence: float
    block: int  # init times drawn together
    init_times: int
    intervals: dict[tuple[str, str], dict[int, Interval]]  # (model, score) -> lead in minutes
    pairs: dict[tuple[str, str, str], dict[int, Difference]]  # (model, other, score), in the order of `models`

    def between(self, model: str, other: str, score: str) -> dict[int, Difference]:
        """Return the differences of `model` from `other` by lead, whichever of the two comes first."""
        if (model, other, score) in self.pairs:
            return self.pairs[model, other, score]
        return {lead: difference.reversed() for lead, difference in self.pairs[other, model, score].items()}


def evidence(sums: Mapping[str, xr.Dataset], scores: Sequence[str], options: Compare) -> Evidence:
    """Return intervals of each model's `scores` and of the paired differences of all models, by lead.

    The models share init times, leads and cells. An interval is value ± t s √f: s the standard deviation over the
    resampled scores, t the quantile of Student's distribution with (blocks − 1) degrees of freedom, f the `too_narrow`
    factor of the score's own dependence in time. NaN with fewer than two init times or where a score is undefined.
    Raises ValueError for a score without a direction such as frequency_bias.
    """
    signs = {score: direction(score) for score in scores}
    first = next(iter(sums.values()))
    n, overlaps = first.sizes[INIT_TIME], overlap(first)
    block = common_block(sums, max(overlaps)) if n > 1 else 1
    weights = draws(n, block, options.resamples, options.seed)
    values = {model: _Values.of(own, scores, weights) for model, own in sums.items()}
    spread = _Spread(_steps(first), block, options.confidence)
    minutes = lead_minutes(first)
    intervals = {
        (model, score): dict(zip(minutes, map(Interval, *spread.interval(own.of_score(score))), strict=True))
        for model, own in values.items()
        for score in scores
    }
    pairs = {}
    for model, other in combinations(sums, 2):
        for score in scores:
            one, two = values[model].of_score(score), values[other].of_score(score)
            low_high = spread.interval(_minus(one, two, absolute=signs[score] == 0))
            each = zip(one[2].T, two[2].T, overlaps, strict=True)
            tested = [paired_p_value(score, *single) for single in each]
            pairs[model, other, score] = {
                lead: Difference(model, other, score, lead, value, low, high, p, _word(low, high, signs[score]))
                for lead, value, low, high, p in zip(minutes, *low_high, tested, strict=True)
            }
    return Evidence(list(sums), options.confidence, block, n, intervals, pairs)


def direction(score: str) -> int:
    """Return −1 where lower values of `score` are better, 1 where higher ones are, 0 where values nearer to 0 are.

    Raises ValueError for scores with another best value: their differences say nothing about better or worse.
    """
    lower, nil, higher, more = (badness(score, value) for value in (-0.5, 0.0, 0.5, 2.0))
    if nil < lower == higher < more:
        return 0
    if lower < nil < higher < more:
        return -1
    if lower > nil > higher > more:
        return 1
    raise ValueError(f"differences of {score} are not tested: neither lower, nor higher, nor nearer to 0 is better")


def overlap(sums: xr.Dataset) -> list[int]:
    """Return for each lead how many init times' forecasts reach over one another: lead / usual spacing, at least 1."""
    spacing = _spacing(sums)
    return [max(1, math.ceil(lead / spacing)) for lead in sums[LEAD_TIME].values]


def common_block(sums: Mapping[str, xr.Dataset], least: int) -> int:
    """Return the block length for all pairs of models: that of their mean squared errors' differences over all leads.

    One model alone has that of its own errors.
    """
    series: list[np.ndarray] = []
    for field in fields_of(next(iter(sums.values()))):
        errors = [_mean_squared_error(field_sums(own, field)) for own in sums.values()]
        series += [one - other for one, other in combinations(errors, 2)] or errors
    return block_length(np.stack(series), least)


def resample(sums: xr.Dataset, weights: np.ndarray) -> xr.Dataset:
    """Return sums of resampled init times, `(replicate, init_time = 1, lead_time, …)`, on which every score works.

    `weights` `(replicate, init_time)` says how often each init time counts. The CRC of valid cells is no sum, so it is
    left out; the init time that remains is the first.
    """
    return _replicates(sums, lambda values: np.tensordot(weights, values, axes=1))


def resampled_scores(sums: xr.Dataset, scores: Sequence[str], weights: np.ndarray) -> dict[str, np.ndarray]:
    """Return each score of the resampled init times, `(replicate, lead)`, in parts that bound the memory.

    Raises ValueError for a score that the sums do not give.
    """
    rows = _rows_at_once(sums)
    parts = [_chosen(resample(sums, weights[k : k + rows]), scores) for k in range(0, len(weights), rows)]
    return {score: np.concatenate([part[score] for part in parts]) for score in scores}


def single_scores(sums: xr.Dataset, scores: Sequence[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return each score of every init time by itself, and of all the others without it, `(init_time, lead)` both."""
    rows = _rows_at_once(sums)
    cuts = [slice(start, start + rows) for start in range(0, sums.sizes[INIT_TIME], rows)]
    alone = [_chosen(_replicates(sums, partial(_only, cut)), scores) for cut in cuts]
    others = [_chosen(_replicates(sums, partial(_all_but, cut)), scores) for cut in cuts]
    return {
        score: (np.concatenate([part[score] for part in alone]), np.concatenate([part[score] for part in others]))
        for score in scores
    }


def pool_leads(sums: xr.Dataset, minutes: Sequence[int] | None = None) -> xr.Dataset:
    """Return the sums over the leads in `minutes` (default: all) as one lead, the longest of them.

    Raises ValueError for leads that no forecast has.
    """
    there = lead_minutes(sums)
    wanted = there if minutes is None else sorted(minutes)
    if missing := [lead for lead in wanted if lead not in there]:
        raise ValueError(f"no forecast reaches {missing[0]} minutes ahead, expected leads among {there}")
    chosen = sums.isel({LEAD_TIME: [there.index(lead) for lead in wanted]})
    longest = chosen[LEAD_TIME].values[-1:]
    kept = chosen.drop_vars([name for name in chosen.data_vars if str(name).rsplit(".", 1)[-1] == VALID_CRC])
    return kept.sum(LEAD_TIME, keep_attrs=True).expand_dims({LEAD_TIME: longest}, axis=1)


def diebold_mariano(differences: np.ndarray, steps: int) -> tuple[float, float]:
    """Return statistic and two-sided p-value for the mean of `differences` `(init_time)` being 0; NaN if undefined.

    `steps` is how many init times one forecast reaches ahead; autocovariances count up to `steps` − 1. NaN values are
    left out. With the small-sample correction and Student's distribution of Harvey, Leybourne and Newbold (1997),
    Int. J. Forecasting 13, eq. 5 and 9; undefined where the variance they estimate is not positive.
    """
    kept = differences[np.isfinite(differences)]
    n = kept.size
    if n <= steps or not kept.any():
        return math.nan, math.nan
    apart = kept - kept.mean()
    covariances = [float(apart[k:] @ apart[: n - k]) for k in range(steps)]
    variance = (covariances[0] + 2 * sum(covariances[1:])) / n**2
    if variance <= 0:
        return math.nan, math.nan
    correction = (n + 1 - 2 * steps + steps * (steps - 1) / n) / n
    statistic = float(kept.mean()) * math.sqrt(correction / variance)
    return statistic, float(2 * student.sf(abs(statistic), n - 1))


def paired_p_value(score: str, one: np.ndarray, other: np.ndarray, steps: int) -> float:
    """Return the p-value of equal mean losses, from the scores of single init times; NaN for scores that are no mean.

    Frames count alike here, whatever their number of valid cells.
    """
    power = LOSSES.get(score.rsplit("/", 1)[-1])
    return math.nan if power is None else diebold_mariano(one**power - other**power, steps)[1]


Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # value, resampled, of each init time, without it


@dataclass(frozen=True)
class _Values:
    """A model's scores, `(row, lead)`: of all init times, of the resampled ones, of each one, of all but each one."""

    rows: dict[str, np.ndarray]
    resamples: int
    init_times: int

    @classmethod
    def of(cls, sums: xr.Dataset, scores: Sequence[str], weights: np.ndarray) -> _Values:
        n = weights.shape[1]
        drawn = resampled_scores(sums, scores, np.concatenate([np.ones((1, n)), weights]))
        alone = single_scores(sums, scores)
        return cls({score: np.concatenate([drawn[score], *alone[score]]) for score in scores}, len(weights), n)

    def of_score(self, score: str) -> Rows:
        ends = np.cumsum([1, self.resamples, self.init_times])
        value, resampled, each, without = np.split(self.rows[score], ends)
        return value[0], resampled, each, without


@dataclass(frozen=True)
class _Spread:
    """How far resampled values lie apart, as intervals by lead."""

    steps: np.ndarray
    block: int
    confidence: float

    def interval(self, rows: Rows) -> tuple[list[float], list[float], list[float]]:
        value, resampled, _, without = rows
        half = np.full(value.shape, np.nan)
        if self.steps.size > 1:
            freedom = max(1.0, self.steps.size / self.block - 1)
            quantile = student.ppf((1 + self.confidence) / 2, freedom)
            half = quantile * _deviation(resampled) * np.sqrt(too_narrow(without, self.steps, self.block))
        return value.tolist(), (value - half).tolist(), (value + half).tolist()


def _spacing(sums: xr.Dataset) -> np.timedelta64:
    inits = sums[INIT_TIME].values
    return np.timedelta64(np.median(np.diff(inits)) if inits.size > 1 else sums[LEAD_TIME].values.max())


def _steps(sums: xr.Dataset) -> np.ndarray:
    """Return where each init time lies, in usual spacings after the first: gaps between events count."""
    inits = sums[INIT_TIME].values
    steps: np.ndarray = np.rint((inits - inits[0]) / _spacing(sums)).astype(np.int64)
    return steps


def _minus(one: Rows, other: Rows, absolute: bool) -> Rows:
    """Return the difference of two scores; of absolute values by the signs of the estimates, which keeps it smooth."""
    signs = [np.sign(rows[0]) if absolute else np.ones_like(rows[0]) for rows in (one, other)]
    value, resampled, each, without = (signs[0] * a - signs[1] * b for a, b in zip(one, other, strict=True))
    return value, resampled, each, without


def _deviation(resampled: np.ndarray) -> np.ndarray:
    """Return the standard deviation over replicates `(replicate, lead)`; NaN where too few of them are defined."""
    finite = np.isfinite(resampled)
    count = finite.sum(0)
    mean = np.where(finite, resampled, 0).sum(0) / np.maximum(count, 1)
    square = (np.where(finite, resampled - mean, 0) ** 2).sum(0) / np.maximum(count - 1, 1)
    return np.where(count >= FINITE_SHARE * len(resampled), np.sqrt(square), np.nan)


def _word(low: float, high: float, sign: int) -> Word:
    if not (low > 0 or high < 0):
        return "no difference"
    return "better" if (low > 0) == (sign > 0) else "worse"


def _replicates(sums: xr.Dataset, rows_of: Callable[[np.ndarray], np.ndarray]) -> xr.Dataset:
    """Return what `rows_of` makes of each sum `(init_time, …)` as `(replicate, init_time = 1, …)`."""
    made = {}
    for name, array in sums.data_vars.items():
        if str(name).rsplit(".", 1)[-1] != VALID_CRC:
            rest = tuple(dim for dim in array.dims if dim != INIT_TIME)
            values = rows_of(array.transpose(INIT_TIME, *rest).values)
            made[name] = ((REPLICATE, INIT_TIME, *rest), values[:, None], array.attrs)
    return xr.Dataset(made, coords=sums.isel({INIT_TIME: [0]}).coords)


def _only(cut: slice, values: np.ndarray) -> np.ndarray:
    return np.asarray(values[cut])


def _all_but(cut: slice, values: np.ndarray) -> np.ndarray:
    return np.asarray(values.sum(0) - values[cut])


def _rows_at_once(sums: xr.Dataset) -> int:
    size = sum(array.size // array.sizes[INIT_TIME] for array in sums.data_vars.values())
    return max(1, VALUES_AT_ONCE // size)


def _chosen(sums: xr.Dataset, scores: Sequence[str]) -> dict[str, np.ndarray]:
    fields = fields_of(sums)
    found: dict[str, xr.DataArray] = {}
    for field in fields:
        prefix = f"{field}/" if len(fields) > 1 else ""
        own = score_arrays(field_sums(sums, field), units_of(sums, field))
        found |= {prefix + key: values for key, values in own.items() if prefix + key in scores}
    if missing := [score for score in scores if score not in found]:
        raise ValueError(f"no score named {missing[0]!r} in the sums of {', '.join(fields)}")
    return {score: values.transpose(REPLICATE, LEAD_TIME).values for score, values in found.items()}


def _mean_squared_error(sums: xr.Dataset) -> np.ndarray:
    """Return the mean squared error of each init time over all leads; its own mean where no cell is valid."""
    n = sums["n"].sum(LEAD_TIME).values
    error = sums["squared_error"].sum(LEAD_TIME).values
    mean = error.sum() / max(n.sum(), 1)
    errors: np.ndarray = np.where(n > 0, error / np.maximum(n, 1), mean)
    return errors
