"""Signs that forecasts or their inputs are not what they were in training."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import numpy as np

from fieldcast.pipeline.config import Drift
from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.live.archive.ledger import Cycle, Verification
from fieldcast.pipeline.live.monitoring.verification import scores_of


def alarms(verified: Sequence[Verification], issued: Sequence[Cycle], options: Drift) -> list[str]:
    """Return a line for each limit of `options` that the cycles of the last `live.drift.days` exceed."""
    lines = []
    if len(verified) >= options.min_cycles:
        first = scores_of(verified)[0]
        overall = first.overall
        if overall["rmse_ratio"] > options.max_rmse_ratio:
            lines.append(
                f"RMSE of {first.field} is {overall['rmse_ratio']:.2f} times that of persistence over {first.cycles} "
                f"cycles, allowed {options.max_rmse_ratio:g} (live.drift.max_rmse_ratio)"
            )
        if options.max_mean_error is not None and abs(overall["mean_error"]) > options.max_mean_error:
            lines.append(
                f"mean error of {first.field} is {overall['mean_error']:+.3g} {first.units} over {first.cycles} cycles,"
                f" allowed {options.max_mean_error:g} (live.drift.max_mean_error)"
            )
    shares = [cycle.outside_share for cycle in issued]
    if len(shares) >= options.min_cycles and (share := sum(shares) / len(shares)) > options.max_outside_share:
        lines.append(
            f"{share:.1%} of the input cells of {len(shares)} cycles lie outside the range of the training data, "
            f"allowed {options.max_outside_share:.1%} (live.drift.max_outside_share)"
        )
    return lines


def outside_share(history: np.ndarray, channels: Sequence[Channel]) -> float:
    """Return the share of the valid cells of a history (t, c, y, x) outside the training data's [min, max]."""
    low = np.array([channel.min for channel in channels], np.float32)[:, None, None]
    high = np.array([channel.max for channel in channels], np.float32)[:, None, None]
    valid = np.isfinite(history).sum()
    return float(((history < low) | (history > high)).sum() / valid) if valid else 0.0


def first_init_time(now: datetime, options: Drift) -> datetime:
    """Return the first init time that `alarms` covers."""
    return now - timedelta(days=options.days)
