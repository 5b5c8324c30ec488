"""The status as Prometheus text, for the node exporter's textfile collector."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from fieldcast.pipeline.datasets.atomic import replacing
from fieldcast.pipeline.live.archive.ledger import State

if TYPE_CHECKING:
    from fieldcast.pipeline.live.monitoring.status import Status

METRICS = "metrics.prom"  # in the live folder
LOOKED, NEWEST, AGE = (  # gauges of time
    "last_look_timestamp_seconds",
    "newest_forecast_init_timestamp_seconds",
    "newest_forecast_age_seconds",
)


def write_metrics(status: Status, path: Path) -> None:
    """Write the status as Prometheus text, in one step."""
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()

    def gauge(name: str, words: str, values: Mapping[str, float], label: str = "") -> None:
        metric = Gauge(f"fieldcast_{name}", words, [label] if label else [], registry=registry)
        for key, value in values.items():
            (metric.labels(key) if label else metric).set(value)

    gauge(LOOKED, "Time of this status", {"": status.now.timestamp()})
    gauge("late", "1 when the schedule is late: fieldcast status says why", {"": bool(status.late)})
    gauge("damaged", "1 when readers get an error: fieldcast status says why", {"": bool(status.faults)})
    gauge("alarm", "1 when forecasts or inputs have become worse", {"": bool(status.alarms)})
    gauge("tracker_pending", "Records that the tracker does not have yet", {"": status.pending})
    states = {str(state): float(status.counts.get(state, 0)) for state in State}
    gauge("cycles", "Cycles with init times in the last 24 hours, by state", states, "state")
    if status.newest and status.age is not None:
        start = status.newest.init_time.timestamp()
        gauge(NEWEST, "Init time of the newest forecast", {"": start})
        gauge(
            AGE,
            "Time since the init time of the newest forecast, at the time of this status",
            {"": status.age.total_seconds()},
        )
        gauge("cycle_seconds", "Seconds that the newest forecast took, by part", status.newest.timings, "part")
    ratios = {scores.field: scores.overall["rmse_ratio"] for scores in status.scores}
    defined = {name: value for name, value in ratios.items() if math.isfinite(value)}
    gauge("rmse_ratio", "RMSE over that of persistence, live.drift.days, all lead times", defined, "field")
    write_to_textfile(str(path), registry)


def refresh(path: Path, now: datetime) -> None:
    """Write the time of a look that has changed nothing else into metrics that are there."""
    if not path.is_file():
        return
    text, values = path.read_text(), {LOOKED: now.timestamp()}
    if newest := re.search(rf"(?m)^fieldcast_{NEWEST} (\S+)$", text):
        values[AGE] = now.timestamp() - float(newest[1])
    for name, value in values.items():
        text = re.sub(rf"(?m)^(fieldcast_{name}) .*$", rf"\g<1> {value!r}", text)
    with replacing(path) as partial:
        partial.write_text(text)
