"""Pictures of the status page: the newest forecast as an animation, and scores of the last days."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fieldcast.pipeline.config import Drift
from fieldcast.pipeline.datasets.labels import COLOURS, readable, readable_units
from fieldcast.pipeline.datasets.schema import INIT_TIME, VALID_TIME, field_names, lead_minutes
from fieldcast.pipeline.live.archive.ledger import Verification
from fieldcast.pipeline.live.monitoring.verification import Scores, scores_of
from fieldcast.pipeline.report.field_map import aspect, colour_bar, draw_field
from fieldcast.pipeline.report.plots import (
    Bins,
    Panel,
    Reliability,
    panel_figure,
    ratio_figure,
    reliability_figure,
)
from fieldcast.pipeline.report.style import (
    INK,
    SOFT,
    colour_scale,
    data_address,
    model_styles,
    pixels,
    spread_out,
    write_gif,
    write_png,
)
from fieldcast.pipeline.verification.probabilistic import RELIABILITY

WIDTH_INCHES, DPI = 4.8, 100
MOST_FRAMES = 12
BINS = 24  # points of a chart over time
STYLES = {
    **model_styles(["persistence"], ["persistence"]),
    "issued": {"color": COLOURS["convlstm"], "linewidth": 2.2},
}


@dataclass(frozen=True)
class Chart:
    """A picture as a `data:` address, its description for those who cannot see it, and the keys of its lines."""

    address: str
    description: str
    keys: list[tuple[str, str]]  # CSS class and words


def animation(forecast: xr.Dataset) -> list[np.ndarray]:
    """Return one picture a lead, `(height, width, 3)` uint8, of the first field of `forecast` (1, lead, y, x).

    At most `MOST_FRAMES` leads, spread evenly, in one colour scale; each is titled with its valid time.
    """
    field = forecast[field_names(forecast)[0]].isel({INIT_TIME: 0}).load()
    cmap, norm = colour_scale(field)
    figure = Figure(figsize=(WIDTH_INCHES, 0.8 * WIDTH_INCHES * aspect(field) + 0.4), dpi=DPI, layout="constrained")
    canvas, axis = FigureCanvasAgg(figure), figure.subplots()
    image = draw_field(axis, field[0], cmap, norm, ())
    colour_bar(figure, [axis], field, cmap, norm)
    axis.set_title("valid time", fontsize=10, fontweight="bold", loc="left")
    pixels(canvas)
    figure.set_layout_engine("none")  # so that all pictures are laid out alike
    leads, frames = lead_minutes(forecast), []
    for i in spread_out(MOST_FRAMES, len(leads)):
        image.set_data(np.ma.masked_invalid(field[i].values))
        valid_time = pd.Timestamp(forecast[VALID_TIME].values[0, i])
        ahead = f"+{leads[i]} min" if leads[i] < 180 else f"+{leads[i] / 60:g} h"
        axis.set_title(f"{valid_time:%Y-%m-%d %H:%M} UTC", fontsize=10, fontweight="bold", color=INK, loc="left")
        axis.set_title(ahead, fontsize=10, color=SOFT, loc="right")
        frames.append(pixels(canvas))
    return frames


def animation_address(frames: Sequence[np.ndarray]) -> str:
    """Return pictures `(height, width, 3)` as the `data:` address of an animation."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "forecast.gif"
        write_gif(frames, path)
        return data_address(path)


def error_chart(scores: Scores) -> Chart | None:
    """Return RMSE against lead time, of issued forecasts and of persistence; None where it is undefined."""
    panel = error_panel(scores)
    if panel is None:
        return None
    overall = scores.overall
    description = (
        f"{panel.title}, {panel.unit}, against lead time: {overall['rmse']:.3g} over all lead times as issued, "
        f"{overall['persistence_rmse']:.3g} by persistence"
    )
    keys = [("issued", "issued"), ("persistence", "persistence")]
    return Chart(address_of(panel_figure(panel, STYLES)), description, keys)


def reliability_charts(scores: Scores) -> list[Chart]:
    """Return how often each event came over how probable it was said to be, of the events that came at all."""
    charts = []
    for k, threshold in enumerate(scores.thresholds if scores.reliability else ()):
        bins = Bins(*(np.array(scores.reliability[name][k]) for name in RELIABILITY))
        if bins.events.sum() > 0:
            event = f"{readable(scores.field)} ≥ {threshold:g} {readable_units(scores.units)}"
            said, came = (part.sum() / bins.count.sum() for part in (bins.probability, bins.events))
            description = f"Reliability of {event}: mean probability {said:.3f}, frequency {came:.3f}"
            figure = reliability_figure(Reliability(event, {"issued": bins}), STYLES)
            charts.append(Chart(address_of(figure), description, [("issued", "issued")]))
    return charts


def error_panel(scores: Scores) -> Panel | None:
    """Return the values of `error_chart`, from 0."""
    sides = {"persistence": scores.persistence_rmse, "issued": scores.rmse}
    values = {name: dict(zip(scores.lead_minutes, side, strict=True)) for name, side in sides.items()}
    highest = max((value for side in sides.values() for value in side if math.isfinite(value)), default=math.nan)
    if math.isnan(highest):
        return None
    limits = (0.0, 1.1 * highest or 1.0)
    return Panel(f"RMSE of {readable(scores.field)}", readable_units(scores.units), values, limits=limits)


def ratio_chart(verified: Sequence[Verification], drift: Drift, now: datetime) -> Chart | None:
    """Return RMSE relative to persistence over the last days; None where it is undefined."""
    ratios = pooled_ratios(verified, drift, now)
    if not ratios:
        return None
    title = f"RMSE of {readable(scores_of(verified)[0].field)} / persistence"
    lines = ", ".join(f"{moment:%Y-%m-%d %H:%M} {ratio:.2f}" for moment, ratio in ratios.items())
    keys = [("issued", "issued"), ("alarm", f"alarm above {drift.max_rmse_ratio:g}")]
    return Chart(address_of(ratio_figure(title, ratios, drift.max_rmse_ratio)), f"{title}: {lines}", keys)


def pooled_ratios(verified: Sequence[Verification], drift: Drift, now: datetime) -> dict[datetime, float]:
    """Return the RMSE of the first field relative to persistence, pooled over spans of a `BINS`th of the days.

    Each is at the mean of its init times; undefined ones are left out.
    """
    span = timedelta(days=drift.days)
    bins: dict[int, list[Verification]] = {}
    for one in verified:
        bins.setdefault((one.init_time - now + span) // (span / BINS), []).append(one)
    ratios = {_mean_time(members): scores_of(members)[0].overall["rmse_ratio"] for _, members in sorted(bins.items())}
    return {moment: ratio for moment, ratio in ratios.items() if math.isfinite(ratio)}


def _mean_time(verified: Sequence[Verification]) -> datetime:
    first = verified[0].init_time
    return first + sum((one.init_time - first for one in verified), timedelta()) / len(verified)


def address_of(figure: Figure) -> str:
    """Return a picture as a `data:` address."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "chart.png"
        write_png(figure, path)
        return data_address(path)
