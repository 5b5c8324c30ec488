"""The status as Prometheus text, for the node exporter's textfile collector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

from fieldcast.pipeline.live.archive.ledger import State
from fieldcast.pipeline.live.monitoring.status import Status


def write_metrics(status: Status, path: Path) -> None:
    """Write the status as Prometheus text, in one step."""
    registry = CollectorRegistry()

    def gauge(name: str, words: str, values: Mapping[str, float], label: str = "") -> None:
        metric = Gauge(f"fieldcast_{name}", words, [label] if label else [], registry=registry)
        for key, value in values.items():
            (metric.labels(key) if label else metric).set(value)

    gauge("last_look_timestamp_seconds", "Time of this status", {"": status.now.timestamp()})
    gauge("late", "1 when the schedule is late: fieldcast status says why", {"": bool(status.late)})
    gauge("damaged", "1 when readers get an error: fieldcast status says why", {"": bool(status.faults)})
    gauge("alarm", "1 when forecasts or inputs have become worse", {"": bool(status.alarms)})
    gauge("tracker_pending", "Records that the tracker does not have yet", {"": status.pending})
    states = {str(state): float(status.counts.get(state, 0)) for state in State}
    gauge("cycles", "Cycles with init times in the last 24 hours, by state", states, "state")
    if status.newest and status.age is not None:
        start = status.newest.init_time.timestamp()
        gauge("newest_forecast_init_timestamp_seconds", "Init time of the newest forecast", {"": start})
        gauge(
            "newest_forecast_age_seconds",
            "Time since the init time of the newest forecast, at the time of this status",
            {"": status.age.total_seconds()},
        )
        gauge("cycle_seconds", "Seconds that the newest forecast took, by part", status.newest.timings, "part")
    ratios = {scores.field: scores.overall["rmse_ratio"] for scores in status.scores}
    defined = {name: value for name, value in ratios.items() if math.isfinite(value)}
    gauge("rmse_ratio", "RMSE over that of persistence, live.drift.days, all lead times", defined, "field")
    write_to_textfile(str(path), registry)
