"""Significance of scores and of differences between models: resampled init times, intervals by lead, a paired test.

Errors of neighbouring init times resemble each other, so whole blocks of init times are drawn, the same for all
models. Every score is a function of sums over init times: a resampled score is that function of resampled sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
import xarray as xr
from scipy.special import stdtr, stdtrit  # Student's distribution; scipy.stats takes seconds to import

from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, lead_minutes
from fieldcast.pipeline.verification.aggregation import (
    VALID_CRC,
    field_scores,
    field_sums,
    fields_of,
    needed_sums,
    units_of,
)
from fieldcast.pipeline.verification.bootstrap import block_length, draws, too_narrow
from fieldcast.pipeline.verification.scores import TABLE, Score, direction

REPLICATE = "replicate"
FINITE_SHARE = 0.9  # of the resampled values; with fewer a score is too often undefined for an interval

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
    score: Score
    lead: float
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
    intervals: dict[tuple[str, Score], dict[float, Interval]]  # (model, score) -> lead in minutes
    pairs: dict[tuple[str, str, Score], dict[float, Difference]]  # (model, other, score), in the order of `models`
    trainings: tuple[tuple[str, ...], ...] = ()  # names of models that are trainings of one, two or more each

    def between(self, model: str, other: str, score: Score) -> dict[float, Difference]:
        """Return the differences of `model` from `other` by lead, whichever of the two comes first."""
        if (model, other, score) in self.pairs:
            return self.pairs[model, other, score]
        return {lead: difference.reversed() for lead, difference in self.pairs[other, model, score].items()}


def evidence(
    sums: Mapping[str, xr.Dataset],
    scores: Sequence[Score],
    options: Compare,
    trainings: Sequence[Sequence[str]] = (),
) -> Evidence:
    """Return intervals of each model's `scores` and of the paired differences of all models, by lead.

    The models share init times, leads and cells. An interval is value ± t s √f: s the standard deviation over the
    resampled scores, t the quantile of Student's distribution with (blocks − 1) degrees of freedom, f the `too_narrow`
    factor of the score's own dependence in time. NaN with fewer than two init times or where a score is undefined.
    Of models that are `trainings` of one, with other seeds, the variance of the score between them is added: what is
    said of one holds for the next training too.
    Raises ValueError for a score without a direction such as frequency_bias.
    """
    signs = {score: direction(score) for score in scores}
    first = next(iter(sums.values()))
    n, overlaps = first.sizes[INIT_TIME], overlap(first)
    block = common_block(sums, max(overlaps)) if n > 1 else 1
    weights = draws(n, block, options.resamples, options.seed)
    values = {model: replicates(own, scores, weights) for model, own in sums.items()}
    spread = _Spread(_steps(first), block, options.confidence)
    minutes = lead_minutes(first)
    groups = tuple(tuple(name for name in group if name in sums) for group in trainings)
    groups = tuple(group for group in groups if len(group) > 1)
    seeds = {model: _between_trainings(values, model, groups) for model in sums}
    intervals = {
        (model, score): dict(
            zip(minutes, map(Interval, *spread.interval(own[score], seeds[model][score])), strict=True)
        )
        for model, own in values.items()
        for score in scores
    }
    pairs = {}
    for model, other in combinations(sums, 2):
        for score, sign in signs.items():
            one, two = values[model][score], values[other][score]
            low_high = spread.interval(_minus(one, two, absolute=sign == 0), seeds[model][score] + seeds[other][score])
            each = zip(one.alone.T, two.alone.T, overlaps, strict=True)
            tested = [paired_p_value(score, *single) for single in each]
            pairs[model, other, score] = {
                lead: Difference(model, other, score, lead, value, low, high, p, _word(low, high, sign))
                for lead, value, low, high, p in zip(minutes, *low_high, tested, strict=True)
            }
    return Evidence(list(sums), options.confidence, block, n, intervals, pairs, groups)


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


class Replicates(NamedTuple):
    """A score of all init times `(lead,)`, then `(replicate, lead)` of resampled ones, of each alone, of all others."""

    value: np.ndarray
    resampled: np.ndarray
    alone: np.ndarray
    without: np.ndarray


def replicates(sums: xr.Dataset, scores: Sequence[Score], weights: np.ndarray) -> dict[Score, Replicates]:
    """Return each score of all, of resampled and of left-out init times; `weights` `(replicate, init_time)` are draws.

    Raises ValueError for a score that the sums do not give.
    """
    fields = fields_of(sums)
    by_field = {field if len(fields) > 1 else "": field_sums(sums, field) for field in fields}
    available = {
        score for name, own in by_field.items() for score in field_scores(own, units_of(sums, name or fields[0]), name)
    }
    if missing := [score for score in scores if score not in available]:
        raise ValueError(f"no score named {missing[0].key()!r} in the sums of {', '.join(fields)}")
    return {score: _replicates(by_field[score.field], score, weights) for score in scores}


def pool_leads(sums: xr.Dataset, minutes: Sequence[float] | None = None) -> xr.Dataset:
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
    return statistic, float(2 * stdtr(n - 1, -abs(statistic)))


def paired_p_value(score: Score, one: np.ndarray, other: np.ndarray, steps: int) -> float:
    """Return the p-value of equal mean losses, from the scores of single init times; NaN for scores that are no mean.

    Frames count alike here, whatever their number of valid cells.
    """
    power = TABLE[score.name].loss_power
    return math.nan if power is None else diebold_mariano(one**power - other**power, steps)[1]


@dataclass(frozen=True)
class _Spread:
    """Spread of resampled values, as intervals by lead."""

    steps: np.ndarray
    block: int
    confidence: float

    def interval(self, rows: Replicates, of_training: np.ndarray) -> tuple[list[float], list[float], list[float]]:
        """Return value, lower and upper end of the interval of each lead, with the variance `of_training` (lead,)."""
        value, resampled, _, without = rows
        half = np.full(value.shape, np.nan)
        if self.steps.size > 1:
            freedom = max(1.0, self.steps.size / self.block - 1)
            quantile = stdtrit(freedom, (1 + self.confidence) / 2)
            variance = _deviation(resampled) ** 2 * too_narrow(without, self.steps, self.block)
            half = quantile * np.sqrt(variance + of_training)
        return value.tolist(), (value - half).tolist(), (value + half).tolist()


def _between_trainings(
    values: Mapping[str, Mapping[Score, Replicates]], model: str, groups: Sequence[Sequence[str]]
) -> dict[Score, np.ndarray]:
    """Return the variance (lead,) of each score between the trainings of one model; 0 where there is one alone."""
    group = next((group for group in groups if model in group), (model,))
    scores = {score: np.stack([values[name][score].value for name in group]) for score in values[model]}
    return {
        score: np.nan_to_num(each.var(axis=0, ddof=1)) if len(group) > 1 else np.zeros(each.shape[1])
        for score, each in scores.items()
    }


def _spacing(sums: xr.Dataset) -> np.timedelta64:
    inits = sums[INIT_TIME].values
    return np.timedelta64(np.median(np.diff(inits)) if inits.size > 1 else sums[LEAD_TIME].values.max())


def _steps(sums: xr.Dataset) -> np.ndarray:
    """Return the position of each init time, in usual spacings after the first: gaps between events count."""
    inits = sums[INIT_TIME].values
    steps: np.ndarray = np.rint((inits - inits[0]) / _spacing(sums)).astype(np.int64)
    return steps


def _minus(one: Replicates, other: Replicates, absolute: bool) -> Replicates:
    """Return the difference of two scores; of absolute values by the signs of the estimates, which keeps it smooth."""
    signs = [np.sign(rows.value) if absolute else np.ones_like(rows.value) for rows in (one, other)]
    return Replicates(*(signs[0] * a - signs[1] * b for a, b in zip(one, other, strict=True)))


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


def _replicates(sums: xr.Dataset, score: Score, weights: np.ndarray) -> Replicates:
    """Return one score from its field's sums (plain names): it is a function of sums, so of any sums of init times."""
    count, n = weights.shape
    needed = needed_sums(sums, score)
    if needed is None:
        leads = sums.sizes[LEAD_TIME]
        return Replicates(np.full(leads, np.nan), *(np.full((rows, leads), np.nan) for rows in (count, n, n)))
    drawn = np.concatenate([np.ones((1, n)), weights])
    stacked = xr.Dataset(
        {
            name: ((REPLICATE, INIT_TIME, *array.dims[1:]), _rows(array.values, drawn)[:, None])
            for name, array in needed.transpose(INIT_TIME, ...).data_vars.items()
        },
        coords=needed.drop_vars(INIT_TIME).coords,
    )
    values = TABLE[score.name].function(stacked).transpose(REPLICATE, LEAD_TIME).values
    value, resampled, alone, without = np.split(values, np.cumsum([1, count, n]))
    return Replicates(value[0], resampled, alone, without)


def _rows(values: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Return sums `(row, …)` of `values` `(init_time, …)`: drawn ones, then each alone, then all but each."""
    return np.concatenate([np.tensordot(drawn, values, axes=1), values, values.sum(0) - values])


def _mean_squared_error(sums: xr.Dataset) -> np.ndarray:
    """Return the mean squared error of each init time over all leads; its own mean where no cell is valid."""
    n = sums["n"].sum(LEAD_TIME).values
    error = sums["squared_error"].sum(LEAD_TIME).values
    mean = error.sum() / max(n.sum(), 1)
    errors: np.ndarray = np.where(n > 0, error / np.maximum(n, 1), mean)
    return errors
