"""The table of scores: how each is computed, which value is best, what it means, how it is written.

A new score is a pure function of sums and one line here. A `Score` is the key of its values everywhere; only where
JSON, MLflow or HTML is written does it become text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import xarray as xr

from fieldcast.pipeline.datasets.labels import readable_units
from fieldcast.pipeline.datasets.schema import slug
from fieldcast.pipeline.verification import (
    categorical,
    continuous,
    economic,
    probabilistic,
    spatial,
    spectral,
    storm_cells,
    structural,
)

Value = TypeVar("Value")
LOWEST, HIGHEST = -math.inf, math.inf  # is best, however far from a perfect forecast


class Score(NamedTuple):
    """A score of a field's values, of an event (values that reach a threshold), or of such events in neighbourhoods."""

    name: str  # a key of `TABLE`
    threshold: float | None = None
    scale_km: float | None = None
    units: str = ""  # of the threshold
    field: str = ""  # empty where the forecasts have one field only

    def key(self) -> str:
        """Return the score as files name it: 'rmse', 'csi_0.5_mm_h', 'fss_1_mm_h_20_km', 'temperature/rmse'."""
        parts = [self.name]
        if self.threshold is not None:
            parts += [f"{self.threshold:g}", slug(self.units)]
        if self.scale_km is not None:
            parts += [f"{self.scale_km:g}", "km"]
        return "/".join(filter(None, (self.field, "_".join(filter(None, parts)))))

    def title(self) -> str:
        """Return the score as people write it, without its field: 'FSS ≥ 1 mm/h, 10 km'."""
        definition = TABLE[self.name]
        units = f" {readable_units(self.units)}" if slug(self.units) else ""
        event = "" if self.threshold is None else f" ≥ {self.threshold:g}{units}"
        scale = "" if self.scale_km is None else f", {self.scale_km:g} km"
        return f"{definition.title}{event}{scale}{', km' if definition.unit == 'km' else ''}"


Scores = dict[Score, dict[float, float]]  # -> lead in minutes -> value


class Definition(NamedTuple):
    """A line of the table: a function of sums pooled over init times, and what readers of a report are shown.

    `best` is the best value, or `LOWEST` or `HIGHEST`. Values of a ratio, whose best is 1, are compared by logarithms.
    `loss_power` is of scores that are a mean of losses, once taken to this power: the paired test is about those.
    """

    function: Callable[[xr.Dataset], xr.DataArray]
    sums: tuple[str, ...]  # that the function takes; without one of them the score is NaN
    best: float
    title: str
    formula: str
    unit: str
    perfect: str
    averaging: str
    tested: bool = False  # has intervals and differences
    loss_power: int | None = None

    @property
    def name(self) -> str:
        """Return what keys of the score begin with."""
        return self.function.__name__


POOLED = "summed over all valid cells and init times first, then divided"
COUNTED = "events counted over all valid cells and init times first, then divided"
STORMS = "storm cells summed over all init times first, then divided"
MOMENTS, WINDOWS = "from pooled moments", "summed over all windows and init times first"
TABLE_OF_COUNTS = categorical.SUMS
HITS = TABLE_OF_COUNTS[:3]
CENTRAL = ("weight", "forecast", "observed", "product", "forecast_squared", "observed_squared")

OF_VALUES = (
    Definition(continuous.rmse, ("squared_error", "weight"), LOWEST, "RMSE", "√( Σw(f − o)² / Σw )", "the field's", "0",
               POOLED + ", then the root", tested=True, loss_power=2),
    Definition(continuous.mae, ("absolute_error", "weight"), LOWEST, "MAE", "Σw|f − o| / Σw", "the field's", "0",
               POOLED, tested=True, loss_power=1),
    Definition(continuous.mean_error, ("error", "weight"), 0.0, "Mean error", "Σw(f − o) / Σw; above 0: too high",
               "the field's", "0", POOLED, tested=True),
    Definition(continuous.mse_frame, ("squared_error", "frames"), LOWEST, "MSE per frame",
               "Σ(f − o)² over a frame's cells", "the field's, squared", "0", "mean of frames"),
    Definition(continuous.correlation, CENTRAL, HIGHEST, "Correlation", "cov(f, o) / √( var(f) var(o) )", "none", "1",
               MOMENTS),
    Definition(continuous.anomaly_correlation, continuous.ANOMALIES, HIGHEST, "Anomaly correlation",
               "Σw f′o′ / √( Σw f′² Σw o′² ), ′: less climatology", "none", "1", MOMENTS),
    Definition(continuous.variance_ratio, CENTRAL, 1.0, "Variance ratio", "var(f) / var(o); below 1: too smooth",
               "none", "1", MOMENTS),
    Definition(structural.psnr, ("peak_squared", "squared_error"), HIGHEST, "PSNR",
               "10 log₁₀( range² / MSE ), range of the training period", "dB", "∞", "from the pooled MSE"),
    Definition(structural.ssim, structural.SUMS, HIGHEST, "SSIM",
               "likeness of means, variances and covariance in windows of 7 × 7 cells", "none", "1",
               "mean over all valid windows"),
    Definition(spectral.spectrum_ratio, spectral.FINE_SUMS, 1.0, "Spectrum ratio of fine scales",
               "power of f / power of o at wavelengths up to 8 cells; below 1: blurred", "none", "1",
               "power summed over init times first, then divided"),
    Definition(spectral.effective_resolution_km, spectral.SUMS, LOWEST, "Effective resolution",
               "shortest wavelength down to which the power of f is at least half of that of o", "km", "two cells",
               "power summed over init times first"),
    Definition(probabilistic.crps, ("crps", "weight"), LOWEST, "CRPS",
               "mean over cells of ∫ (F(x) − 1[x ≥ o])² dx; for one forecast the MAE", "the field's", "0", POOLED,
               tested=True, loss_power=1),
    Definition(probabilistic.spread_skill, ("expected_squared_error", "squared_error"), 1.0, "Spread over skill",
               "√( (M+1)/M mean variance of the members ) / RMSE of their mean", "none", "1", "from pooled sums"),
    Definition(probabilistic.coverage_90, ("interval_covered", "weight"), probabilistic.LEVEL,
               "Coverage of the 90 % interval", "share of o between the forecast's 5 and 95 % quantiles", "none",
               "0.9", POOLED),
)  # fmt: skip
OF_EVENTS = (
    Definition(categorical.csi, HITS, HIGHEST, "CSI", "hits / (hits + misses + false alarms)", "none", "1", COUNTED,
               tested=True),
    Definition(categorical.pod, HITS, HIGHEST, "POD", "hits / (hits + misses)", "none", "1", COUNTED),
    Definition(categorical.far, HITS, LOWEST, "FAR", "false alarms / (hits + false alarms)", "none", "0", COUNTED),
    Definition(categorical.pofd, TABLE_OF_COUNTS, LOWEST, "POFD", "false alarms / (false alarms + correct negatives)",
               "none", "0", COUNTED),
    Definition(categorical.frequency_bias, HITS, 1.0, "Frequency bias", "(hits + false alarms) / (hits + misses)",
               "none", "1", COUNTED),
    Definition(categorical.ets, TABLE_OF_COUNTS, HIGHEST, "ETS",
               "(hits − r) / (hits + misses + false alarms − r), r: hits by chance", "none", "1", COUNTED),
    Definition(categorical.hss, TABLE_OF_COUNTS, HIGHEST, "HSS",
               "share of correct cells beyond chance / what chance leaves", "none", "1", COUNTED),
    Definition(categorical.sedi, TABLE_OF_COUNTS, HIGHEST, "SEDI",
               "(ln F − ln H − ln(1−F) + ln(1−H)) / (ln F + ln H + ln(1−F) + ln(1−H)), H: POD, F: POFD", "none", "1",
               COUNTED),
    Definition(probabilistic.brier, ("brier", "weight"), LOWEST, "Brier score", "mean over cells of (p − 1[event])²",
               "none", "0", POOLED, tested=True),
)  # fmt: skip
OF_NEIGHBOURHOODS = (
    Definition(spatial.fss, spatial.SUMS, HIGHEST, "FSS", "1 − Σ(pf − po)² / Σ(pf² + po²)", "none", "1", WINDOWS,
               tested=True),
)  # fmt: skip
OF_STORM_CELLS = (
    Definition(storm_cells.storm_csi, storm_cells.COUNTS, HIGHEST, "Storm cells: CSI",
               "hits / (hits + misses + false alarms), of storm cells", "none", "1", STORMS, tested=True),
    Definition(storm_cells.storm_pod, storm_cells.COUNTS[:2], HIGHEST, "Storm cells: POD",
               "hits / (hits + misses), of storm cells", "none", "1", STORMS),
    Definition(storm_cells.storm_far, storm_cells.COUNTS[::2], LOWEST, "Storm cells: FAR",
               "false alarms / (hits + false alarms), of storm cells", "none", "0", STORMS),
    Definition(storm_cells.storm_distance_km, (storm_cells.COUNTS[0], storm_cells.DISTANCE), LOWEST,
               "Storm cells: distance", "mean distance of the centres of hits", "km", "0", "mean over hits"),
    Definition(storm_cells.storm_area_ratio, storm_cells.AREAS, 1.0, "Storm cells: area",
               "Σ areas f / Σ areas o, of hits", "none", "1", STORMS),
    Definition(storm_cells.storm_peak_ratio, storm_cells.PEAKS, 1.0, "Storm cells: highest value",
               "Σ highest values f / Σ highest values o, of hits", "none", "1", STORMS),
)  # fmt: skip
OF_USERS = (  # of sums that a user's costs are in
    Definition(economic.value, economic.SUMS, HIGHEST, "Economic value",
               "share of what perfect forecasts would save a user with a ratio of cost to loss", "none", "1",
               "expenses added up over all valid cells and init times first", tested=True),
)  # fmt: skip
DEFINITIONS = (*OF_VALUES, *OF_EVENTS, *OF_NEIGHBOURHOODS, *OF_STORM_CELLS, *OF_USERS)
TABLE = {definition.name: definition for definition in DEFINITIONS}


def of_values(sums: Iterable[Hashable]) -> list[Definition]:
    """Return the lines of scores without an event; those of a user where the user's expenses are among the `sums`."""
    names = set(sums)
    return [*OF_VALUES, *(definition for definition in OF_USERS if set(definition.sums) <= names)]


def by_key(scores: Mapping[Score, Value]) -> dict[str, Value]:
    """Return the same values under the keys that files and MLflow have."""
    return {score.key(): value for score, value in scores.items()}


def badness(score: Score, value: float) -> float:
    """Return a number that is lower for a better `value` of `score`; infinite for NaN."""
    best = TABLE[score.name].best
    if math.isnan(value):
        return math.inf
    if math.isinf(best):
        return value if best == LOWEST else -value
    if best == 1:
        return abs(math.log(value)) if value > 0 else math.inf
    return abs(value - best)


def direction(score: Score) -> int:
    """Return −1 where lower values of `score` are better, 1 where higher ones are, 0 where values nearer to 0 are.

    Raises ValueError for scores with another best value: their differences say nothing about better or worse.
    """
    best = TABLE[score.name].best
    if best not in (LOWEST, 0.0, HIGHEST):
        raise ValueError(
            f"differences of {score.key()} are not tested: neither lower, nor higher, nor nearer to 0 is better"
        )
    return 0 if best == 0 else int(math.copysign(1, best))


def best_at(metrics: Mapping[str, Scores], score: Score, lead: float) -> list[str]:
    """Return the models with the best value of `score` at `lead` (minutes): several on a tie, none if all are NaN."""
    ranks = {model: badness(score, scores[score][lead]) for model, scores in metrics.items()}
    lowest = min(ranks.values())
    return [model for model, rank in ranks.items() if rank == lowest and math.isfinite(rank)]
