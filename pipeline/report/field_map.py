"""A field on a map: painted as pixels, or drawn on its coordinates; coastlines, axis labels, a colour bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colors import BoundaryNorm, Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from fieldcast.pipeline.datasets.grid import is_rotated, unit_of_axis
from fieldcast.pipeline.datasets.labels import readable_units
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.report.overlay import COAST, edges, overlay
from fieldcast.pipeline.report.style import FAINT, RAIN_LEVELS, colour_scale, difference_scale

TILE_PIXELS = 208  # the longer side of a tile
DPI = 120  # of figures of tiles


class Tiles:
    """Observed and forecast fields of one init time as pictures `(height, width, 3)` uint8, each painted once.

    Fields are `(lead_time, y, x)`; y rises upwards, all have the colour scale of the observed.
    """

    def __init__(
        self, observed: xr.DataArray, forecasts: Mapping[str, xr.DataArray], coast: Sequence[np.ndarray]
    ) -> None:
        self.observed, self.forecasts, self.coast = observed, forecasts, coast
        self.fields = {"observed": observed, **forecasts}
        shape = aspect(observed)
        self.width, self.height = round(TILE_PIXELS / max(1.0, shape)), round(TILE_PIXELS * min(1.0, shape))
        self.scale = colour_scale(observed)
        y = observed[Y].values
        ny, nx = observed.shape[-2:]
        rows = ((np.arange(self.height) + 0.5) * ny / self.height).astype(int)
        self._rows = rows if y[0] > y[-1] else ny - 1 - rows
        self._columns = ((np.arange(self.width) + 0.5) * nx / self.width).astype(int)
        self._painted: dict[tuple[str, int, bool], np.ndarray] = {}

    @cached_property
    def difference_scale(self) -> tuple[Colormap, BoundaryNorm]:
        """Return the colours of forecast minus observed."""
        observed = self.observed.values
        return difference_scale([field.copy(data=field.values - observed) for field in self.forecasts.values()])

    def field(self, name: str, lead: int) -> np.ndarray:
        """Return the observed ('observed') or a model's field at the position `lead`."""
        return self._tile(name, lead, difference=False)

    def difference(self, name: str, lead: int) -> np.ndarray:
        """Return a model's forecast minus the observed at the position `lead`."""
        return self._tile(name, lead, difference=True)

    def cells(self, name: str, lead: int, *, difference: bool) -> np.ndarray:
        """Return a field, or its difference from the observed, without lines over it, a pixel a cell if they fit."""
        rows, columns = (np.unique(places) for places in (self._rows, self._columns))
        ordered = rows[::-1] if self._rows[0] > self._rows[-1] else rows
        return self._paint(name, lead, difference, ordered, columns)

    def lines(self, *, bar: bool, sharp: int = 1) -> np.ndarray:
        """Return what is drawn over each tile, `(height, width, 4)` uint8, `sharp` times as large."""
        size = (sharp * self.width, sharp * self.height)
        return overlay(self.observed[0], self.coast, size, sharp * DPI, bar=bar)

    def _tile(self, name: str, lead: int, difference: bool) -> np.ndarray:
        if (name, lead, difference) not in self._painted:
            picture = self._paint(name, lead, difference, self._rows, self._columns)
            lines = self._lines_and_bar if name == "observed" else self._lines
            opacity = lines[..., 3:] / 255
            self._painted[name, lead, difference] = (
                (picture + opacity * (lines[..., :3].astype(float) - picture)).round().astype(np.uint8)
            )
        return self._painted[name, lead, difference]

    def _paint(self, name: str, lead: int, difference: bool, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        values = self.fields[name].values[lead]
        if difference:
            values = values - self.observed.values[lead]
        cmap, norm = self.difference_scale if difference else self.scale
        seen = np.ma.masked_invalid(values[rows[:, None], columns])
        return np.asarray(cmap(norm(seen), bytes=True))[..., :3]

    @cached_property
    def _lines(self) -> np.ndarray:
        return self.lines(bar=False)

    @cached_property
    def _lines_and_bar(self) -> np.ndarray:
        return self.lines(bar=True)


def draw_field(
    axis: Axes, field: xr.DataArray, cmap: Colormap, norm: Normalize, coast: Sequence[np.ndarray]
) -> AxesImage:
    """Draw a field (y, x) with coastlines, its y coordinate rising upwards; missing cells stay empty."""
    y, x = (display(field[name]) for name in (Y, X))
    extent = (*edges(x), *edges(y))
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


def colour_bar(
    figure: Figure, place: Axes | list[Axes], observed: xr.DataArray, cmap: Colormap, norm: Normalize
) -> None:
    """Add a colour bar with the name and units of the field, beside a list of axes or in place of one axis."""
    rain = isinstance(norm, BoundaryNorm)
    mappable, ticks = ScalarMappable(norm, cmap), list(RAIN_LEVELS) if rain else None
    if isinstance(place, list):
        bar = figure.colorbar(mappable, ax=place, extend="both", shrink=0.9, aspect=35, pad=0.01, ticks=ticks)
    else:
        bar = figure.colorbar(mappable, cax=place, extend="both", ticks=ticks)
    if rain:
        bar.ax.set_yticklabels([f"{level:g}" for level in RAIN_LEVELS])
    bar.ax.tick_params(labelsize=7)
    units = readable_units(str(observed.attrs.get("units", "")))
    bar.set_label(f"{field_name(observed)}, {units} (grey: missing)", fontsize=8)


def aspect(field: xr.DataArray) -> float:
    """Return height over width of a field on its coordinates, within 0.4 and 2."""
    height, width = (abs(np.subtract(*edges(display(field[name])))) for name in (Y, X))
    return float(np.clip(height / width, 0.4, 2.0))


def display(axis: xr.DataArray) -> np.ndarray:
    """Return coordinates as they are labelled: metres become km, all else stays."""
    return np.asarray(axis.values, np.float64) * _display_factor(axis)


def axis_label(axis: xr.DataArray, name: str) -> str:
    """Return what a coordinate axis is labelled with."""
    unit = unit_of_axis(axis)
    if unit == "degree":
        return f"{'rotated ' if is_rotated(axis) else ''}{'latitude' if name == Y else 'longitude'}, °"
    return f"{name}, cells" if unit is None else f"{name}, km"


def field_name(field: xr.DataArray) -> str:
    """Return what a field is called in pictures."""
    return str(field.attrs.get("long_name", field.name)).replace("_", " ")


def _display_factor(axis: xr.DataArray) -> float:
    return 0.001 if unit_of_axis(axis) == "metre" else 1.0


def _in_display(coast: Sequence[np.ndarray], field: xr.DataArray) -> list[np.ndarray]:
    factors = np.asarray([_display_factor(field[X]), _display_factor(field[Y])])
    return [line * factors for line in coast]
