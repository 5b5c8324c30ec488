"""Which value of a score is the better one, and which models have it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby

from fieldcast.pipeline.verification.aggregation import Scores

HIGHER_IS_BETTER = (
    "csi", "pod", "fss", "ets", "hss", "sedi", "correlation", "anomaly_correlation", "psnr", "ssim",
)  # fmt: skip
BEST_IS_ZERO = ("mean_error",)
BEST_IS_ONE = ("frequency_bias", "variance_ratio", "spectrum_ratio", "spread_skill")
BEST_COVERAGE = {"coverage_90": 0.9}


def badness(score: str, value: float) -> float:
    """Return a number that is lower for a better `value` of the score named `score`; infinite for NaN."""
    name = score.rsplit("/", 1)[-1]
    if math.isnan(value):
        return math.inf
    if name.startswith(HIGHER_IS_BETTER):
        return -value
    if name.startswith(BEST_IS_ZERO):
        return abs(value)
    if name.startswith(BEST_IS_ONE):
        return abs(math.log(value)) if value > 0 else math.inf
    if name in BEST_COVERAGE:
        return abs(value - BEST_COVERAGE[name])
    return value


def best_at(metrics: Mapping[str, Scores], score: str, lead: int) -> list[str]:
    """Return the models with the best value of `score` at `lead` (minutes): several on a tie, none if all are NaN."""
    ranks = {model: badness(score, scores[score][lead]) for model, scores in metrics.items()}
    lowest = min(ranks.values())
    return [model for model, rank in ranks.items() if rank == lowest and math.isfinite(rank)]


def runs(flags: Mapping[int, bool]) -> list[tuple[int, int]]:
    """Return (first, last) key of each unbroken run of true values, in the mapping's order."""
    groups = (list(group) for _, group in groupby(flags.items(), key=lambda item: item[1]))
    return [(group[0][0], group[-1][0]) for group in groups if group[0][1]]
