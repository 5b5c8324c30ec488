"""The picture of an explanation: the history with outlines of where the forecast comes from, forecast and observed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import AbstractPathEffect, withStroke
from scipy.ndimage import gaussian_filter

from fieldcast.pipeline.datasets.labels import readable
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.explain.attribution import AROUND, Explanation
from fieldcast.pipeline.report.coastlines import coastlines
from fieldcast.pipeline.report.field_map import aspect, axis_label, colour_bar, display, draw_field, field_name
from fieldcast.pipeline.report.style import INK, colour_scale, spread_out, write_png

COLUMNS = 4
FRAMES = 6  # of the history at most
HELD = (0.9, 0.5)  # shares of the whole map inside its two outlines
OUTLINES = ("#7a0177", "#e0218a")
MARK = "#111111"
HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.6, foreground="white")]


def levels_of(shares: np.ndarray) -> list[float]:
    """Return the values above which the largest cells hold the shares `HELD` of a map that sums to 1, rising."""
    ordered = np.sort(shares, axis=None)[::-1]
    held = np.cumsum(ordered)
    return [float(ordered[min(int(np.searchsorted(held, share)), held.size - 1)]) for share in HELD]


def explanation_figure(explained: Explanation) -> Figure:
    """Return history frames with the map's outlines, its centres and the explained cells; then forecast and observed.

    The map is smoothed over a cell or two for its outlines, one pair of levels for all frames: a frame that adds little
    has none.
    """
    panels: list[int | str] = [*spread_out(FRAMES, len(explained.shares)), "forecast"]
    panels += ["observed"] if explained.observed is not None else []
    rows = -(-len(panels) // COLUMNS)
    size = (2.35 * COLUMNS + 0.9, (2.2 * aspect(explained.forecast) + 0.35) * rows + 0.55)
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False, sharex=True, sharey=True)
    scale = colour_scale(explained.history)
    coast = coastlines(explained.forecast)
    smooth = np.stack([gaussian_filter(frame, 1.0) for frame in explained.shares])
    levels = levels_of(smooth)
    for axis, panel in zip(axes.ravel(), panels, strict=False):
        field = _field(explained, panel)
        draw_field(axis, field, *scale, coast)
        _mark_cells(axis, explained)
        if isinstance(panel, int):
            _outline(axis, field, smooth[panel], levels)
            _point(axis, explained, panel)
        axis.set_title(_title(explained, panel), fontsize=9, color=INK, pad=4)
    for axis in axes.ravel()[len(panels) :]:
        axis.set_axis_off()
    for axis in axes[:, 0]:
        axis.set_ylabel(axis_label(explained.forecast[Y], "y"), fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel(axis_label(explained.forecast[X], "x"), fontsize=7)
    colour_bar(figure, axes.ravel().tolist(), explained.history, *scale)
    figure.suptitle(_heading(explained), fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def check_picture(path: Path) -> None:
    """Raise `InputError` unless a picture could be written to `path`."""
    if path.suffix != ".png" or path.is_dir():
        raise InputError(f"--out is {path}, expected a file that ends in .png")


def write_picture(explained: Explanation, path: Path) -> None:
    """Write the figure of an explanation, in a folder that is made where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(explanation_figure(explained), path)


def _field(explained: Explanation, panel: int | str) -> xr.DataArray:
    if isinstance(panel, int):
        return explained.history[panel]
    field = explained.forecast if panel == "forecast" else explained.observed
    assert field is not None  # a panel of its own only then
    return field


def _title(explained: Explanation, panel: int | str) -> str:
    if not isinstance(panel, int):
        return f"{panel}, +{explained.question.lead_minutes} min"
    frame = explained.frames()[panel]
    return f"{frame['minutes']:+.0f} min: {100 * frame['share']:.0f} %".replace("+0 min", "0 min").replace("-", "−")


def _heading(explained: Explanation) -> str:
    init_time = pd.Timestamp(explained.question.init_time)
    how = {"gradient": "Gradient times input", "rollout": "Rollout of attention"}[explained.question.how]
    return (
        f"Where {readable(explained.model)}'s {field_name(explained.history).lower()} at row {explained.cell[0]}, "
        f"column {explained.cell[1]} comes from, {init_time:%Y-%m-%d %H:%M} UTC"
        f" +{explained.question.lead_minutes} min\n{how}: outlines hold 50 % and 90 % of it, arrows lead from the"
        " centre of each frame's share to the forecast"
    )


def _outline(axis: Axes, field: xr.DataArray, shares: np.ndarray, levels: list[float]) -> None:
    """Draw the cells above each level that this frame reaches."""
    for level, colour in zip(levels, OUTLINES, strict=True):
        if shares.max() > level:
            lines = axis.contour(
                display(field[X]), display(field[Y]), shares, levels=[level], colors=[colour], linewidths=1.4
            )
            lines.set_path_effects(HALO)


def _mark_cells(axis: Axes, explained: Explanation) -> None:
    """Draw a square around the cells that are explained."""
    y, x = (display(explained.forecast[name]) for name in (Y, X))
    rows, columns = (
        np.clip([at - AROUND - 0.5, at + AROUND + 0.5], -0.5, size - 0.5)
        for at, size in zip(explained.cell, (y.size, x.size), strict=True)
    )
    (bottom, top), (left, right) = _places(y, rows), _places(x, columns)
    corners = [left, right, right, left, left], [bottom, bottom, top, top, bottom]
    axis.plot(*corners, color=MARK, linewidth=1.1, path_effects=HALO)


def _point(axis: Axes, explained: Explanation, panel: int) -> None:
    """Draw an arrow from the centre of a frame's share to the explained cell."""
    frame = explained.frames()[panel]
    if not np.isfinite(frame["row"]):
        return
    y, x = (display(explained.forecast[name]) for name in (Y, X))
    (from_y, to_y), (from_x, to_x) = (
        _places(places, np.array([frame[name], at]))
        for places, name, at in zip((y, x), ("row", "column"), explained.cell, strict=True)
    )
    arrow = {"arrowstyle": "->", "color": MARK, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0}
    drawn = axis.annotate("", (to_x, to_y), (from_x, from_y), arrowprops=arrow)
    assert drawn.arrow_patch is not None  # there are arrow properties
    drawn.arrow_patch.set_path_effects(HALO)
    axis.plot(from_x, from_y, "o", color=MARK, markersize=3.5, path_effects=HALO)


def _places(centres: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return coordinates at fractional positions on an axis, half a cell beyond its ends too."""
    step = (centres[-1] - centres[0]) / max(centres.size - 1, 1)
    places: np.ndarray = centres[0] + step * np.asarray(at)
    return places
