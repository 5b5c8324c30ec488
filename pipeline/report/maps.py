"""Maps of single forecasts: a case as a picture, as an animation, as a strip and as sheets for a slider.

Each field is painted once, as an array of pixels; figures are put together from these tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from fieldcast.pipeline.datasets.labels import readable, readable_units
from fieldcast.pipeline.datasets.schema import LEAD_TIME, MEMBER, TIME, VALID_TIME, X, Y, lead_minutes
from fieldcast.pipeline.report.field_map import DPI, Tiles, axis_label, colour_bar, display, field_name
from fieldcast.pipeline.report.overlay import edges, graticule, scale_bar_km
from fieldcast.pipeline.report.style import (
    FAINT,
    INK,
    SOFT,
    pixels,
    spread_out,
    webp,
    write_pixels,
    write_png,
)

BORDER = 170  # the grey around a tile
GAP, HEADING = 8, 20  # pixels between tiles, and above each for its valid time
SHEETS = 12  # at most so many leads have a sheet,
SHEET_BYTES = 1_000_000  # and all sheets of a report take about so much
SHARP = 2  # pixels of the lines over a sheet for one of a tile


@dataclass(frozen=True)
class Case:
    """One init time: what was observed, what each model forecast; every array `(lead_time, y, x)` with `units`.

    `coast` holds lines `(point, x and y)` in the grid's own coordinates; they are drawn over every field.
    """

    init_time: np.datetime64
    observed: xr.DataArray
    forecasts: Mapping[str, xr.DataArray]
    coast: Sequence[np.ndarray] = ()

    @cached_property
    def tiles(self) -> Tiles:
        """Return the case's fields as pictures, which all figures share."""
        return Tiles(self.observed, self.forecasts, self.coast)


@dataclass(frozen=True)
class MapSeries:
    """Maps of one init time, a sheet a lead: a column of tiles for the observed and for each model.

    The upper row of a sheet holds the fields, the lower one forecast minus observed. What is drawn over each tile is in
    pictures of their own, sharper than a cell.
    """

    title: str
    models: Sequence[str]
    labels: Sequence[str]  # valid time and lead of each sheet
    sheets: Sequence[Path]
    scale: Path  # the colour bars
    lines: Path  # over each tile
    bar: Path  # over the observed: the lines and the bar of the scale
    tile: tuple[int, int]  # width and height in pixels, as it is shown


def case_of(
    observed: xr.DataArray,
    forecasts: Mapping[str, xr.DataArray],
    init_time: np.datetime64,
    coast: Sequence[np.ndarray] = (),
) -> Case:
    """Return the case of one init time, in memory, from observations `(time, y, x)` and each model's forecasts.

    Members are averaged: the mean is what all deterministic scores look at.
    """
    cut = {name: _mean(array.sel(init_time=init_time).load()) for name, array in forecasts.items()}
    any_forecast = next(iter(cut.values()))
    actual = observed.sel({TIME: any_forecast[VALID_TIME].values}).load()
    actual = actual.rename({TIME: LEAD_TIME}).assign_coords({LEAD_TIME: any_forecast[LEAD_TIME].values})
    return Case(init_time, actual, cut, coast)


def case_figure(case: Case, frames: int = 4) -> Figure:
    """Return the observed and each model's fields, a column each, at a few leads, a row each, in one colour scale."""
    tiles, leads = case.tiles, spread_out(frames, case.observed.sizes[LEAD_TIME])
    grid = _Grid(case, rows=len(leads), columns=len(tiles.fields), left=62, top=52, right=96, bottom=46)
    figure = Figure(figsize=(grid.width / DPI, grid.height / DPI), dpi=DPI, facecolor="white")
    picture = grid.blank()
    for row, lead in enumerate(leads):
        for column, name in enumerate(tiles.fields):
            grid.paste(picture, tiles.field(name, lead), row, column)
            grid.write(figure, row, column, _frame_title(case, lead), above=3, fontsize=7, color=SOFT)
    figure.figimage(picture, zorder=-1)
    for column, name in enumerate(tiles.fields):
        grid.write(figure, 0, column, readable(name), above=HEADING, fontsize=9.5, fontweight="bold", color=INK)
    for row in range(len(leads)):
        grid.add_axis(figure, row, 0, bottom=row == len(leads) - 1, left=True)
    for column in range(1, len(tiles.fields)):
        grid.add_axis(figure, len(leads) - 1, column, bottom=True, left=False)
    colour_bar(figure, grid.bar_axis(figure), case.observed, *tiles.scale)
    top = 1 - 6 / grid.height
    figure.text(6 / grid.width, top, _case_title(case), fontsize=11, color=INK, va="top")
    figure.text(1 - 6 / grid.width, top, legend(case), fontsize=7.5, color=SOFT, va="top", ha="right")
    return figure


def case_animation(case: Case) -> list[np.ndarray]:
    """Return one picture a lead, `(height, width, 3)` uint8: the observed beside each model."""
    names = list(case.tiles.fields)
    columns = min(4, len(names))
    grid = _Grid(case, rows=-(-len(names) // columns), columns=columns, left=8, top=6, right=96, bottom=8)
    figure = Figure(figsize=(grid.width / DPI, grid.height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for k, name in enumerate(names):
        weight = "bold" if name == "observed" else "normal"
        grid.write(figure, *divmod(k, columns), readable(name), above=3, fontsize=8, fontweight=weight)
    colour_bar(figure, grid.bar_axis(figure), case.observed, *case.tiles.scale)
    body, pictures = pixels(canvas), []
    for lead in range(case.observed.sizes[LEAD_TIME]):
        picture = body.copy()
        for k, name in enumerate(names):
            grid.paste(picture, case.tiles.field(name, lead), *divmod(k, columns))
        title = _line(f"{_case_title(case)} · {_frame_title(case, lead)}", grid.width, height=26)
        pictures.append(np.concatenate([title, picture]))
    return pictures


def case_strip(case: Case, model: str, frames: int = 3) -> np.ndarray:
    """Return one model's strip `(height, width, 3)` uint8: observed above, forecast below, at a few leads."""
    leads = spread_out(frames, case.observed.sizes[LEAD_TIME])
    grid = _Grid(case, rows=2, columns=len(leads), left=22, top=0, right=0, bottom=0, heading=18)
    figure = Figure(figsize=(grid.width / DPI, grid.height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    for column, lead in enumerate(leads):
        grid.write(figure, 0, column, _frame_title(case, lead), above=3, fontsize=6.5)
    for row, name in enumerate(("observed", model)):
        _, y = grid.centre(row, 0)
        figure.text(11 / grid.width, y, readable(name), fontsize=7, rotation=90, ha="center", va="center")
    picture = pixels(canvas)
    for row, name in enumerate(("observed", model)):
        for column, lead in enumerate(leads):
            grid.paste(picture, case.tiles.field(name, lead), row, column)
    return picture


def write_map_series(case: Case, folder: Path, stem: str, title: str, most_bytes: int = SHEET_BYTES) -> MapSeries:
    """Write `<stem>_lead_<minutes>.webp` for as many leads as fit, and what is drawn over them; return what they are.

    These are at most `SHEETS` leads, and `most_bytes` in all, but for one.
    """
    tiles, minutes = case.tiles, lead_minutes(case.observed.to_dataset(name="field"))
    leads = spread_out(SHEETS, len(minutes))
    files = [webp(sheet) for sheet in sheets(case, leads)]
    fit = max(1, int(len(leads) * most_bytes / sum(map(len, files)))) if sum(map(len, files)) > most_bytes else SHEETS
    kept = spread_out(fit, len(leads))
    paths = [folder / f"{stem}_lead_{minutes[leads[k]]:04g}.webp" for k in kept]
    for path, k in zip(paths, kept, strict=True):
        path.write_bytes(files[k])
    scale, lines, bar = (folder / f"{stem}_{name}.png" for name in ("scale", "lines", "bar"))
    write_png(scale_figure(case), scale)
    write_pixels(tiles.lines(bar=False, sharp=SHARP), lines)
    write_pixels(tiles.lines(bar=True, sharp=SHARP), bar)
    labels = [_frame_title(case, leads[k]) for k in kept]
    return MapSeries(title, list(case.forecasts), labels, paths, scale, lines, bar, (tiles.width, tiles.height))


def sheets(case: Case, leads: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield one sheet `(2 tiles, 1 + models tiles, 3)` uint8 a lead: fields above, forecast minus observed below.

    A pixel is a cell, or of large grids a pixel of a tile.
    """
    tiles = case.tiles
    for lead in leads:
        upper = [tiles.cells(name, lead, difference=False) for name in tiles.fields]
        lower = [np.full_like(upper[0], 255)]  # the observed has no difference
        lower += [tiles.cells(name, lead, difference=True) for name in case.forecasts]
        yield np.concatenate([np.concatenate(row, axis=1) for row in (upper, lower)])


def legend(case: Case) -> str:
    """Return what is drawn over a case's maps, as a sentence; '' where nothing is."""
    drawn = ["dark: coast"] if case.coast else []
    grid, bar = graticule(case.observed[0]).text, scale_bar_km(case.observed[0])
    drawn += [f"thin: every {grid}"] if grid else []
    drawn += [f"bar: {bar:g} km"] if bar is not None else []
    return f"Lines: {'; '.join(drawn)}" if drawn else ""


def scale_figure(case: Case) -> Figure:
    """Return the colour bars of a sheet, one above the other: of the field, and of forecast minus observed."""
    figure = Figure(figsize=(4.4, 1.75), dpi=160, facecolor="white", layout="constrained")
    units = readable_units(str(case.observed.attrs.get("units", "")))
    names = (f"{field_name(case.observed)}, {units} (grey: missing)", f"forecast minus observed, {units}")
    scales = case.tiles.scale, case.tiles.difference_scale
    for axis, name, (cmap, norm) in zip(figure.subplots(2), names, scales, strict=True):
        ticks = list(norm.boundaries) if isinstance(norm, BoundaryNorm) else None
        bar = figure.colorbar(
            ScalarMappable(norm, cmap), cax=axis, orientation="horizontal", ticks=ticks, extend="both"
        )
        if ticks:
            bar.ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        bar.ax.tick_params(labelsize=7)
        bar.ax.set_title(name, fontsize=8, loc="left", color=INK, pad=3)
    bar.ax.set_xlabel(legend(case), fontsize=8, loc="left", color=INK)
    return figure


@dataclass(frozen=True)
class _Grid:
    """Places for tiles in a picture, in pixels from its upper left corner; fractions of it from the lower left one."""

    case: Case
    rows: int
    columns: int
    left: int
    top: int
    right: int
    bottom: int
    heading: int = HEADING  # above each tile

    @property
    def width(self) -> int:
        """Return the width of the picture in pixels."""
        return self.left + self.columns * (self.case.tiles.width + GAP) - GAP + self.right

    @property
    def height(self) -> int:
        """Return the height of the picture in pixels."""
        return self.top + self.rows * (self.heading + self.case.tiles.height) + self.bottom

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Return row and column of the pixel in the upper left corner of a tile."""
        tiles = self.case.tiles
        return (
            self.top + row * (self.heading + tiles.height) + self.heading,
            self.left + column * (tiles.width + GAP),
        )

    def centre(self, row: int, column: int) -> tuple[float, float]:
        """Return x and y of the centre of a tile, as fractions."""
        y, x = self.corner(row, column)
        tiles = self.case.tiles
        return (x + tiles.width / 2) / self.width, 1 - (y + tiles.height / 2) / self.height

    def blank(self) -> np.ndarray:
        """Return a white picture (height, width, 3) uint8."""
        return np.full((self.height, self.width, 3), 255, np.uint8)

    def paste(self, picture: np.ndarray, tile: np.ndarray, row: int, column: int) -> None:
        """Put a tile in its place, with a thin border."""
        y, x = self.corner(row, column)
        place = picture[y : y + tile.shape[0], x : x + tile.shape[1]]
        place[:] = tile
        place[[0, -1]] = BORDER
        place[:, [0, -1]] = BORDER

    def write(self, figure: Figure, row: int, column: int, text: str, above: int, **font: Any) -> None:
        """Write text over a tile, `above` pixels from its upper edge."""
        y, _ = self.corner(row, column)
        figure.text(self.centre(row, column)[0], 1 - (y - above) / self.height, text, ha="center", va="bottom", **font)

    def add_axis(self, figure: Figure, row: int, column: int, *, bottom: bool, left: bool) -> None:
        """Add the coordinates of a tile: labels and ticks at its lower or left edge."""
        y, x = self.corner(row, column)
        tiles, observed = self.case.tiles, self.case.observed
        axis = figure.add_axes(
            (
                x / self.width,
                1 - (y + tiles.height) / self.height,
                tiles.width / self.width,
                tiles.height / self.height,
            ),
            frameon=False,
            xlim=edges(display(observed[X])),
            ylim=sorted(edges(display(observed[Y]))),
        )
        axis.locator_params(nbins=4)
        axis.tick_params(labelsize=6, length=2, color=FAINT, bottom=bottom, left=left)
        axis.tick_params(labelbottom=bottom, labelleft=left)
        if bottom:
            axis.set_xlabel(axis_label(observed[X], "x"), fontsize=7)
        if left:
            axis.set_ylabel(axis_label(observed[Y], "y"), fontsize=7)

    def bar_axis(self, figure: Figure) -> Axes:
        """Add an axis for a colour bar at the right of all tiles."""
        x = self.width - self.right + 12
        height = self.height - self.top - self.bottom - self.heading
        return figure.add_axes((x / self.width, self.bottom / self.height, 12 / self.width, height / self.height))


def _line(text: str, width: int, height: int) -> np.ndarray:
    """Return a line of text as a picture."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    figure.text(8 / width, 0.5, text, fontsize=9, va="center")
    return pixels(canvas)


def _mean(field: xr.DataArray) -> xr.DataArray:
    return field.mean(MEMBER, keep_attrs=True) if MEMBER in field.dims else field


def _frame_title(case: Case, lead: int) -> str:
    minutes = lead_minutes(case.observed.to_dataset(name="field"))[lead]
    valid = pd.Timestamp(case.init_time) + pd.Timedelta(minutes=minutes)
    ahead = f"+{minutes:g} min" if minutes < 180 else f"+{minutes / 60:g} h"
    return f"{valid:%H:%M} UTC ({ahead})"


def _case_title(case: Case) -> str:
    return f"Forecasts from {pd.Timestamp(case.init_time):%Y-%m-%d %H:%M} UTC"
