"""Lines over a map: coasts, a graticule, and a bar that tells its scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from contourpy import contour_generator
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from fieldcast.pipeline.datasets.geolocation import degrees_at
from fieldcast.pipeline.datasets.grid import KM_PER_UNIT, spacing_km, unit_of_axis
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.report.style import INK

COAST, GRATICULE = "#3a3a3a", "#8a8a8a"
POINTS = 120  # along each axis at which latitudes and longitudes are looked up
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30)  # degrees between two lines
LINES = 3  # a graticule has about so many in each direction
BAR_SHARE = 0.4  # of a map's width, at most
LABEL_POINTS = 5.5


@dataclass(frozen=True)
class Graticule:
    """Lines `(point, x and y)` in a grid's own coordinates, and what they are: '2° of latitude, 5° of longitude'."""

    lines: Sequence[np.ndarray] = ()
    text: str = ""


def graticule(field: xr.DataArray) -> Graticule:
    """Return the graticule of a field's grid: of latitudes and longitudes where they are known, else of its axes.

    None where the axes have no units or fewer than two cells.
    """
    if min(field.sizes[Y], field.sizes[X]) < 2:
        return Graticule()
    y, x = (np.linspace(*edges(field[name].values), POINTS) for name in (Y, X))
    located = degrees_at(field, x, y)
    if located is not None:
        return _of_degrees(x, y, *located)
    if not {unit_of_axis(field[name]) for name in (Y, X)} <= {"metre", "kilometre"}:
        return Graticule()
    down, across = (KM_PER_UNIT[unit_of_axis(field[name])] for name in (Y, X))
    step = _nice(float(np.ptp(x)) * across / LINES)
    lines = [np.array([(at, y[0]), (at, y[-1])]) for at in _levels(x, step / across)]
    lines += [np.array([(x[0], at), (x[-1], at)]) for at in _levels(y, step / down)]
    return Graticule(lines, f"{step:g} km")


def scale_bar_km(field: xr.DataArray) -> float | None:
    """Return the length of a field's scale bar, a round one; None where its cells have no lengths."""
    try:
        _, width = spacing_km(field.to_dataset(name="field"))
    except InputError:
        return None
    return _nice(BAR_SHARE * width * field.sizes[X])


def overlay(
    field: xr.DataArray, coast: Sequence[np.ndarray], size: tuple[int, int], dpi: int, *, bar: bool
) -> np.ndarray:
    """Return the lines over a map of `size` (width, height) in pixels as `(height, width, 4)` uint8, with opacity.

    `coast` is in the grid's own coordinates. Widths are those of printed lines at `dpi`.
    """
    figure = Figure(figsize=(size[0] / dpi, size[1] / dpi), dpi=dpi, facecolor="none")
    canvas = FigureCanvasAgg(figure)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    axis.set(xlim=edges(field[X].values), ylim=sorted(edges(field[Y].values)))
    axis.add_collection(LineCollection(graticule(field).lines, colors=GRATICULE, linewidths=0.35, alpha=0.7))
    axis.add_collection(LineCollection(coast, colors=COAST, linewidths=0.6))
    if bar and (length := scale_bar_km(field)) is not None:
        _draw_bar(axis, field, length)
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba()).copy()  # type: ignore[no-untyped-call]


def edges(centres: np.ndarray) -> tuple[float, float]:
    """Return the outer edges of the first and the last cell of an axis."""
    half = (centres[-1] - centres[0]) / (centres.size - 1) / 2
    return float(centres[0] - half), float(centres[-1] + half)


def _draw_bar(axis: Axes, field: xr.DataArray, length: float) -> None:
    """Draw a bar of `length` km in the lower left corner, in fractions of the map's width."""
    _, width = spacing_km(field.to_dataset(name="field"))
    share = length / (width * field.sizes[X])
    halo = [withStroke(linewidth=2.5, foreground="white")]
    place = axis.transAxes
    axis.plot((0.04, 0.04 + share), (0.05, 0.05), color=INK, linewidth=1.4, transform=place, path_effects=halo)
    label = axis.text(
        0.04, 0.075, f"{length:g} km", fontsize=LABEL_POINTS, color=INK, transform=place, path_effects=halo
    )
    label.set_parse_math(False)


def _of_degrees(x: np.ndarray, y: np.ndarray, longitude: np.ndarray, latitude: np.ndarray) -> Graticule:
    middle = longitude[longitude.shape[0] // 2, longitude.shape[1] // 2]
    east = (longitude - middle + 180) % 360 - 180 + middle  # no jump within the map
    lines, parts = [], []
    for values, name in ((latitude, "latitude"), (east, "longitude")):
        if not np.isfinite(values).all():
            return Graticule()
        step = min((step for step in STEPS if step >= np.ptp(values) / (LINES + 1)), default=STEPS[-1])
        contours = contour_generator(x, y, values)
        lines += [np.asarray(line) for level in _levels(values, step) for line in contours.lines(level)]
        parts.append(f"{step:g}° of {name}")
    return Graticule(lines, ", ".join(parts))


def _levels(values: np.ndarray, step: float) -> np.ndarray:
    """Return the multiples of `step` within the range of `values`."""
    return np.arange(np.ceil(values.min() / step), np.floor(values.max() / step) + 1) * step


def _nice(most: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is at most `most`."""
    power = 10.0 ** np.floor(np.log10(most))
    return float(max(factor * power for factor in (1.0, 2.0, 5.0) if factor * power <= most * (1 + 1e-9)))
