"""A field on a map: drawn on its coordinates with coastlines, axis labels and a colour bar."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from fieldcast.pipeline.datasets.grid import unit_of_axis
from fieldcast.pipeline.datasets.labels import readable_units
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.report.style import FAINT, RAIN_LEVELS

COAST = "#3a3a3a"


def draw_field(
    axis: Axes, field: xr.DataArray, cmap: Colormap, norm: Normalize, coast: Sequence[np.ndarray]
) -> AxesImage:
    """Draw a field (y, x) with coastlines, its y coordinate rising upwards; missing cells stay empty."""
    y, x = (display(field[name]) for name in (Y, X))
    extent = (*_edges(x), *_edges(y))
    image = axis.imshow(
        np.ma.masked_invalid(field.values), extent=extent, origin="lower", cmap=cmap, norm=norm, interpolation="nearest"
    )
    axis.add_collection(LineCollection(_in_display(coast, field), colors=COAST, linewidths=0.6), autolim=False)
    if y[0] > y[-1]:
        axis.set_ylim(extent[3], extent[2])
    axis.tick_params(labelsize=6, length=2, color=FAINT)
    axis.locator_params(nbins=4)
    for spine in axis.spines.values():
        spine.set_color("#aaaaaa")
    return image


def colour_bar(figure: Figure, axes: list[Axes], observed: xr.DataArray, cmap: Colormap, norm: Normalize) -> None:
    """Add the colour bar of all `axes`, with the name and units of the field."""
    rain = isinstance(norm, BoundaryNorm)
    bar = figure.colorbar(
        ScalarMappable(norm, cmap), ax=axes, extend="both", shrink=0.9, aspect=35, pad=0.01,
        ticks=list(RAIN_LEVELS) if rain else None,
    )  # fmt: skip
    if rain:
        bar.ax.set_yticklabels([f"{level:g}" for level in RAIN_LEVELS])
    bar.ax.tick_params(labelsize=7)
    bar.set_label(
        f"{field_name(observed)}, {readable_units(str(observed.attrs.get('units', '')))} (grey: missing)", fontsize=8
    )


def aspect(field: xr.DataArray) -> float:
    """Return height over width of a field on its coordinates, within 0.4 and 2."""
    height, width = (abs(np.subtract(*_edges(display(field[name])))) for name in (Y, X))
    return float(np.clip(height / width, 0.4, 2.0))


def display(axis: xr.DataArray) -> np.ndarray:
    """Return coordinates as they are labelled: metres become km, all else stays."""
    return np.asarray(axis.values, np.float64) * _display_factor(axis)


def axis_label(axis: xr.DataArray, name: str) -> str:
    """Return what a coordinate axis is labelled with."""
    unit = unit_of_axis(axis)
    if unit == "degree":
        return f"{'latitude' if name == Y else 'longitude'}, °"
    return f"{name}, cells" if unit is None else f"{name}, km"


def field_name(field: xr.DataArray) -> str:
    """Return what a field is called in pictures."""
    return str(field.attrs.get("long_name", field.name)).replace("_", " ")


def _edges(centres: np.ndarray) -> tuple[float, float]:
    half = (centres[-1] - centres[0]) / (centres.size - 1) / 2
    return float(centres[0] - half), float(centres[-1] + half)


def _display_factor(axis: xr.DataArray) -> float:
    return 0.001 if unit_of_axis(axis) == "metre" else 1.0


def _in_display(coast: Sequence[np.ndarray], field: xr.DataArray) -> list[np.ndarray]:
    factors = np.asarray([_display_factor(field[X]), _display_factor(field[Y])])
    return [line * factors for line in coast]
