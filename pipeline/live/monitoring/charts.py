"""Pictures of the status page: the newest forecast in motion, and charts of its scores as lines on a plane.

Charts are coordinates only; the page draws them in its own colours, light or dark.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import imageio.v3 as iio
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from fieldcast.pipeline.config import Drift
from fieldcast.pipeline.datasets.labels import lead_unit, readable_units
from fieldcast.pipeline.datasets.schema import INIT_TIME, VALID_TIME, X, Y, field_names, lead_minutes
from fieldcast.pipeline.live.archive.ledger import Verification
from fieldcast.pipeline.live.monitoring.verification import Scores, scores_of
from fieldcast.pipeline.report.style import RAIN_LEVELS, colour_scale, spread_out, write_gif

WIDTH_INCHES, DPI = 4.8, 100
MOST_FRAMES = 12
INK, SOFT = "#222222", "#555555"
PLANE = (400, 230)  # width and height of a chart
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 40  # margins
BINS = 24  # points of a chart over time
HOURS = (1, 2, 3, 6, 12, 24, 48, 96, 168, 336, 720)  # between ticks


@dataclass(frozen=True)
class Line:
    """A line of a chart: what it is, its path, and its points with what they say."""

    name: str
    path: str
    points: list[tuple[float, float, str]]


@dataclass(frozen=True)
class Chart:
    """Lines on a plane of `PLANE` units, their ticks, and the words around them."""

    title: str
    x_label: str
    y_label: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    lines: list[Line]
    limit: tuple[float, str] | None = None

    width, height = PLANE
    left, right, top, bottom = LEFT, PLANE[0] - RIGHT, TOP, PLANE[1] - BOTTOM


def animation(forecast: xr.Dataset) -> list[np.ndarray]:
    """Return one picture a lead, `(height, width, 3)` uint8, of the first field of `forecast` (1, lead, y, x).

    At most `MOST_FRAMES` leads, spread evenly, in one colour scale; each is titled with its valid time.
    """
    field = forecast[field_names(forecast)[0]].isel({INIT_TIME: 0}).load()
    cmap, norm = colour_scale(field)
    tall = float(np.clip(field.sizes[Y] * _spacing(field, Y) / (field.sizes[X] * _spacing(field, X)), 0.35, 1.6))
    figure = Figure(figsize=(WIDTH_INCHES, WIDTH_INCHES * tall + 0.95), dpi=DPI, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.06, h_pad=0.06)
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots()
    image = _draw(axis, field[0], cmap, norm)
    axis.set_title("valid time", fontsize=11, fontweight="bold", loc="left")
    _colour_bar(figure, axis, field, cmap, norm)
    leads = lead_minutes(forecast)
    canvas.draw()  # type: ignore[no-untyped-call]
    figure.set_layout_engine("none")  # it stays as it is now laid out
    frames = []
    for i in spread_out(MOST_FRAMES, len(leads)):
        image.set_data(np.ma.masked_invalid(field[i].values))
        valid = pd.Timestamp(forecast[VALID_TIME].values[0, i])
        ahead = f"+{leads[i]} min" if leads[i] < 180 else f"+{leads[i] / 60:g} h"
        axis.set_title(f"{valid:%Y-%m-%d %H:%M} UTC", fontsize=11, fontweight="bold", color=INK, loc="left")
        axis.set_title(ahead, fontsize=11, color=SOFT, loc="right")
        canvas.draw()  # type: ignore[no-untyped-call]
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]
    return frames


def data_address(frames: Sequence[np.ndarray]) -> str:
    """Return pictures `(height, width, 3)` as the `data:` address of an animation; a single one as that of a PNG."""
    if len(frames) == 1:
        return _address("image/png", iio.imwrite("<bytes>", frames[0], extension=".png"))
    with TemporaryDirectory() as place:
        file = Path(place) / "forecast.gif"
        write_gif(frames, file)
        return _address("image/gif", file.read_bytes())


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def error_chart(scores: Scores) -> Chart | None:
    """Return RMSE against lead time, of what was issued and of persistence; nothing where there is no value."""
    divisor, unit = lead_unit(scores.lead_minutes)
    units = readable_units(scores.units)
    leads = [lead / divisor for lead in scores.lead_minutes]
    highest = max((it for it in (*scores.rmse, *scores.persistence_rmse) if math.isfinite(it)), default=math.nan)
    if math.isnan(highest):
        return None
    margin = 0.04 * (leads[-1] - leads[0]) or 1.0
    plane = _plane((leads[0] - margin, leads[-1] + margin), highest)

    def line(name: str, values: Sequence[float]) -> Line:
        points = [(x, y, f"{name} at {x:g} {unit}: {y:.3g} {units}") for x, y in zip(leads, values, strict=True)]
        return plane.line(name, points)

    ticks = [leads[i] for i in spread_out(6, len(leads))]
    return Chart(
        f"RMSE of {scores.field.replace('_', ' ')} against lead time",
        f"lead time, {unit}",
        units,
        [(plane.x(it), f"{it:g}") for it in ticks],
        plane.y_ticks,
        [line("persistence", scores.persistence_rmse), line("issued", scores.rmse)],
    )


def ratio_chart(verified: Sequence[Verification], drift: Drift, now: datetime) -> Chart | None:
    """Return the RMSE relative to persistence over the last days, pooled over spans; nothing where it is undefined."""
    span = timedelta(days=drift.days)
    values = {moment: (scores.overall["rmse_ratio"], scores) for moment, scores in _pooled(verified, now - span, span)}
    known = {moment: it for moment, it in values.items() if math.isfinite(it[0])}
    if not known:
        return None
    field = next(iter(known.values()))[1].field
    highest = max(drift.max_rmse_ratio, *(ratio for ratio, _ in known.values()))
    plane = _plane((0.0, span.total_seconds()), highest)
    points = [
        (
            (moment - now + span).total_seconds(),
            ratio,
            f"{moment:%Y-%m-%d %H:%M} UTC: {ratio:.2f} over {scores.cycles} cycles",
        )
        for moment, (ratio, scores) in known.items()
    ]
    return Chart(
        f"RMSE of {field.replace('_', ' ')} relative to persistence",
        "init time, UTC",
        "below 1: better",
        [(plane.x((it - now + span).total_seconds()), text) for it, text in _time_ticks(now - span, now)],
        plane.y_ticks,
        [plane.line("issued", points)],
        (plane.y(drift.max_rmse_ratio), f"alarm above {drift.max_rmse_ratio:g}"),
    )


@dataclass(frozen=True)
class Plane:
    """Where values lie on a chart."""

    x: Callable[[float], float]
    y: Callable[[float], float]
    y_ticks: list[tuple[float, str]]

    def line(self, name: str, points: Sequence[tuple[float, float, str]]) -> Line:
        """Return a line through points (x, y, what they say), broken where y is NaN."""
        placed = [(self.x(x), self.y(y), text) if math.isfinite(y) else None for x, y, text in points]
        path, pen = [], "M"
        for point in placed:
            if point is not None:
                path.append(f"{pen}{point[0]:g} {point[1]:g}")
            pen = "M" if point is None else "L"
        return Line(name, " ".join(path), [point for point in placed if point is not None])


def _plane(x_limits: tuple[float, float], highest: float) -> Plane:
    """Return a plane from 0 to the next tick above `highest`."""
    ticks = [float(it) for it in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0.0, highest or 1.0)]
    (first, last), top = x_limits, ticks[-1]

    def x(value: float) -> float:
        return round(LEFT + (PLANE[0] - LEFT - RIGHT) * (value - first) / (last - first), 1)

    def y(value: float) -> float:
        return round(PLANE[1] - BOTTOM - (PLANE[1] - TOP - BOTTOM) * value / top, 1)

    return Plane(x, y, [(y(it), f"{it:g}") for it in ticks])


def _pooled(verified: Sequence[Verification], start: datetime, span: timedelta) -> list[tuple[datetime, Scores]]:
    """Return the scores of the first field, pooled over spans of a `BINS`th, at the mean of their init times."""
    bins: dict[int, list[Verification]] = {}
    for it in verified:
        bins.setdefault((it.init_time - start) // (span / BINS), []).append(it)
    return [(_mean([it.init_time for it in members]), scores_of(members)[0]) for _, members in sorted(bins.items())]


def _mean(moments: Sequence[datetime]) -> datetime:
    return moments[0] + sum((it - moments[0] for it in moments), timedelta()) / len(moments)


def _time_ticks(start: datetime, end: datetime) -> list[tuple[datetime, str]]:
    """Return at most seven round times and their texts: hours, and at midnight the day."""
    hours = next((it for it in HOURS if (end - start) / timedelta(hours=it) <= 6), HOURS[-1])
    step, midnight = timedelta(hours=hours), start.replace(hour=0, minute=0, second=0, microsecond=0)
    times = [midnight + i * step for i in range(int((end - midnight) / step) + 1)]
    return [(it, f"{it:%d %b}" if it.hour == 0 else f"{it:%H:%M}") for it in times if it >= start]


def _draw(axis: Axes, field: xr.DataArray, cmap: Colormap, norm: Normalize) -> AxesImage:
    y = field[Y].values
    image = axis.imshow(
        np.ma.masked_invalid(field.values), cmap=cmap, norm=norm, interpolation="nearest",
        origin="lower" if y[0] < y[-1] else "upper", aspect=_spacing(field, Y) / _spacing(field, X),
    )  # fmt: skip
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color("#aaaaaa")
    return image


def _spacing(field: xr.DataArray, name: str) -> float:
    values = field[name].values
    return float(abs(values[-1] - values[0]) / (values.size - 1)) if values.size > 1 else 1.0


def _colour_bar(figure: Figure, axis: Axes, field: xr.DataArray, cmap: Colormap, norm: Normalize) -> None:
    rain = isinstance(norm, BoundaryNorm)
    bar = figure.colorbar(
        ScalarMappable(norm, cmap), ax=axis, orientation="horizontal", extend="both", shrink=0.95, aspect=40, pad=0.02,
        ticks=list(RAIN_LEVELS) if rain else None,
    )  # fmt: skip
    if rain:
        bar.ax.set_xticklabels([f"{level:g}" for level in RAIN_LEVELS])
    bar.ax.tick_params(labelsize=8, labelcolor=INK, color=SOFT)
    name = str(field.attrs.get("long_name", field.name)).replace("_", " ")
    bar.set_label(f"{name}, {readable_units(str(field.attrs.get('units', '')))} (grey: missing)", fontsize=8, color=INK)
