"""Verification against the `scores` package: the same scores of the same arrays in one process, as a ratio of times.

RMSE, MAE, mean error and CSI at six thresholds of 40 init times x 12 leads x 128 x 128 cells with 5 % missing.
Interleaved runs, the best of five each; the largest difference between the two is printed beside the ratio.
"""

import json
import platform
import sys
import time
import warnings

import numpy as np
import scores
import xarray as xr

from fieldcast.pipeline.verification.aggregation import frame_sums
from fieldcast.pipeline.verification.categorical import csi
from fieldcast.pipeline.verification.continuous import mae, mean_error, rmse

THRESHOLDS = [0.1, 0.5, 1.0, 2.0, 5.0, 10.0]
DIMS = ("init_time", "lead_time", "y", "x")


def fields() -> tuple[np.ndarray, np.ndarray]:
    """Return rain-like forecasts and observations."""
    draws = np.random.default_rng(1)
    shape = (40, 12, 128, 128)
    observed = draws.gamma(0.2, 5.0, shape).astype(np.float32)
    forecast = (observed * draws.lognormal(0, 0.5, shape)).astype(np.float32)
    observed[draws.random(shape) < 0.05] = np.nan
    return forecast, observed


def ours(forecast: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return scores (3 + thresholds, lead) by this project."""
    sums = frame_sums(forecast, observed, np.isfinite(observed), THRESHOLDS, [])
    total = xr.Dataset(
        {
            name: (("init_time", "lead_time", "threshold")[: value.ndim], value)
            for name, value in sums.items()
            if np.issubdtype(value.dtype, np.floating)
        }
    )
    return np.vstack([rmse(total), mae(total), mean_error(total), csi(total).transpose("threshold", "lead_time")])


def theirs(forecast: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return the same scores by the `scores` package."""
    f, o = (xr.DataArray(values, dims=DIMS) for values in (forecast, observed))
    kept = {"preserve_dims": "lead_time"}
    rows = [
        scores.continuous.rmse(f, o, **kept),
        scores.continuous.mae(f, o, **kept),
        scores.continuous.additive_bias(f, o, **kept),
    ]
    for threshold in THRESHOLDS:
        operator = scores.categorical.ThresholdEventOperator(default_event_threshold=threshold)
        table = operator.make_contingency_manager(f.where(o.notnull()), o).transform(preserve_dims="lead_time")
        rows.append(table.critical_success_index())
    return np.vstack(rows)


def main() -> None:
    """Print one JSON object."""
    warnings.simplefilter("ignore")
    forecast, observed = fields()
    times: dict[str, list[float]] = {"ours": [], "theirs": []}
    results = {}
    for _ in range(5):
        for name, function in (("ours", ours), ("theirs", theirs)):
            started = time.perf_counter()
            results[name] = function(forecast, observed)
            times[name].append(time.perf_counter() - started)
    best = {name: min(values) for name, values in times.items()}
    report = {
        "benchmark": "verification",
        "seconds": {name: round(value, 4) for name, value in best.items()},
        "times faster than scores": round(best["theirs"] / best["ours"], 1),
        "largest difference": float(np.abs(results["ours"] - results["theirs"]).max()),
        "machine": f"{platform.processor() or platform.machine()}, Python {platform.python_version()}",
    }
    json.dump(report, sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
