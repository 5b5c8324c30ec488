"""Maps of single forecasts: a case as a picture, as an animation, as a tile and as sheets for a slider."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from fieldcast.pipeline.datasets.labels import readable, readable_units
from fieldcast.pipeline.datasets.schema import LEAD_TIME, TIME, VALID_TIME, X, Y, lead_minutes
from fieldcast.pipeline.report.field_map import aspect, axis_label, colour_bar, draw_field, field_name
from fieldcast.pipeline.report.style import (
    INK,
    SOFT,
    colour_scale,
    difference_scale,
    pixels,
    spread_out,
    write_png,
    write_webp,
)

MEMBER = "member"
STRIP_PIXELS = 512
TILE_PIXELS = 208  # the longer side of a tile on a sheet
SHEETS = 12  # at most so many leads have a sheet


@dataclass(frozen=True)
class Case:
    """One init time: what was observed, what each model forecast; every array `(lead_time, y, x)` with `units`.

    `coast` holds lines `(point, x and y)` in the grid's own coordinates; they are drawn over every field.
    """

    init_time: np.datetime64
    observed: xr.DataArray
    forecasts: Mapping[str, xr.DataArray]
    coast: Sequence[np.ndarray] = ()


@dataclass(frozen=True)
class MapSeries:
    """Maps of one init time, a sheet a lead: a column of tiles for the observed and for each model.

    The upper row of a sheet holds the fields, the lower one forecast minus observed; nothing is written on it.
    """

    title: str
    models: Sequence[str]
    labels: Sequence[str]  # valid time and lead of each sheet
    sheets: Sequence[Path]
    scale: Path  # the colour bars
    tile: tuple[int, int]  # width and height in pixels


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
    fields = {"observed": case.observed, **case.forecasts}
    leads = spread_out(frames, case.observed.sizes[LEAD_TIME])
    shape = aspect(case.observed)
    size = (1.75 * len(fields) + 1.4, 1.75 * shape * len(leads) + 1.2)
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    axes = figure.subplots(len(leads), len(fields), squeeze=False, sharex=True, sharey=True)
    cmap, norm = colour_scale(case.observed)
    for row, lead in enumerate(leads):
        for axis, (name, field) in zip(axes[row], fields.items(), strict=True):
            draw_field(axis, field[lead], cmap, norm, case.coast)
            heading = f"{readable(name)}\n" if row == 0 else ""
            axis.set_title(heading, fontsize=9.5, fontweight="bold", color=INK, pad=2)
            axis.annotate(
                _frame_title(case, lead), (0.5, 1), (0, 3), "axes fraction", "offset points",
                ha="center", fontsize=7, color=SOFT,
            )  # fmt: skip
        axes[row, 0].set_ylabel(axis_label(case.observed[Y], "y"), fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel(axis_label(case.observed[X], "x"), fontsize=7)
    colour_bar(figure, axes.ravel().tolist(), case.observed, cmap, norm)
    figure.suptitle(_case_title(case), fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def case_animation(case: Case) -> list[np.ndarray]:
    """Return one picture a lead, `(height, width, 3)` uint8: the observed beside each model."""
    fields = {"observed": case.observed, **case.forecasts}
    columns = min(4, len(fields))
    rows = -(-len(fields) // columns)
    size = (2.1 * columns + 0.8, (1.93 * aspect(case.observed) + 0.22) * rows + 0.35)
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    cmap, norm = colour_scale(case.observed)
    images = []
    for axis, (name, field) in zip(axes, fields.items(), strict=False):
        images.append(draw_field(axis, field[0], cmap, norm, case.coast))
        axis.set_title(readable(name), fontsize=9, fontweight="bold" if name == "observed" else "normal", pad=3)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[len(fields) :]:
        axis.set_axis_off()
    colour_bar(figure, axes.tolist(), case.observed, cmap, norm)
    title = figure.suptitle(f"{_case_title(case)} · {_frame_title(case, 0)}", fontsize=10, x=0.01, ha="left")
    frames = []
    for lead in range(case.observed.sizes[LEAD_TIME]):
        for image, field in zip(images, fields.values(), strict=True):
            image.set_data(np.ma.masked_invalid(field[lead].values))
        title.set_text(f"{_case_title(case)} · {_frame_title(case, lead)}")
        frames.append(pixels(canvas))
    return frames


def case_strip(case: Case, model: str, frames: int = 3) -> np.ndarray:
    """Return one model's tile `(height, width, 3)` uint8: observed above, forecast below, at a few leads."""
    leads = spread_out(frames, case.observed.sizes[LEAD_TIME])
    height = 2 * aspect(case.observed) / len(leads) + 0.06  # for each unit of width
    inches = STRIP_PIXELS / 128
    figure = Figure(figsize=(inches, inches * min(height, 1.5)), dpi=128, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(leads), squeeze=False)
    cmap, norm = colour_scale(case.observed)
    for row, (name, field) in enumerate({"observed": case.observed, model: case.forecasts[model]}.items()):
        for axis, lead in zip(axes[row], leads, strict=True):
            draw_field(axis, field[lead], cmap, norm, case.coast)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(_frame_title(case, lead) if row == 0 else "", fontsize=6, pad=2)
        axes[row, 0].set_ylabel(readable(name), fontsize=7)
    return pixels(canvas)


def write_map_series(case: Case, folder: Path, stem: str, title: str) -> MapSeries:
    """Write `<stem>_lead_<minutes>.webp` for at most `SHEETS` leads and `<stem>_scale.png`; return what they are."""
    minutes = lead_minutes(case.observed.to_dataset(name="field"))
    leads = spread_out(SHEETS, len(minutes))
    paths = [folder / f"{stem}_lead_{minutes[lead]:04d}.webp" for lead in leads]
    for path, sheet in zip(paths, sheets(case, leads), strict=True):
        write_webp(sheet, path)
    scale = folder / f"{stem}_scale.png"
    write_png(scale_figure(case), scale)
    labels = [_frame_title(case, lead) for lead in leads]
    return MapSeries(title, list(case.forecasts), labels, paths, scale, _tile_size(case.observed))


def sheets(case: Case, leads: Sequence[int]) -> Iterator[np.ndarray]:
    """Yield one sheet `(2 tiles, 1 + models tiles, 3)` uint8 a lead: fields above, forecast minus observed below."""
    columns, (width, height) = 1 + len(case.forecasts), _tile_size(case.observed)
    figure = Figure(figsize=(columns * width / 100, 2 * height / 100), dpi=100, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    fields = [case.observed, *case.forecasts.values()]
    differences = _differences(case)
    scales = colour_scale(case.observed), difference_scale(differences)
    drawn = []
    for row, arrays in enumerate((fields, differences)):
        for k, array in enumerate(arrays):
            column = k + row  # the observed has no difference
            axis = figure.add_axes((column / columns, (1 - row) / 2, 1 / columns, 1 / 2))
            drawn.append((draw_field(axis, array[0], *scales[row], case.coast), array))
            axis.set(xticks=[], yticks=[], aspect="auto")
    for lead in leads:
        for image, array in drawn:
            image.set_data(np.ma.masked_invalid(array[lead].values))
        yield pixels(canvas)


def scale_figure(case: Case) -> Figure:
    """Return the colour bars of a sheet, one above the other: of the field, and of forecast minus observed."""
    figure = Figure(figsize=(4.4, 1.5), dpi=160, facecolor="white", layout="constrained")
    units = readable_units(str(case.observed.attrs.get("units", "")))
    names = (f"{field_name(case.observed)}, {units} (grey: missing)", f"forecast minus observed, {units}")
    scales = colour_scale(case.observed), difference_scale(_differences(case))
    for axis, name, (cmap, norm) in zip(figure.subplots(2), names, scales, strict=True):
        ticks = list(norm.boundaries) if isinstance(norm, BoundaryNorm) else None
        bar = figure.colorbar(
            ScalarMappable(norm, cmap), cax=axis, orientation="horizontal", ticks=ticks, extend="both"
        )
        if ticks:
            bar.ax.set_xticks(ticks, [f"{tick:.3g}" for tick in ticks])
        bar.ax.tick_params(labelsize=7)
        bar.ax.set_title(name, fontsize=8, loc="left", color=INK, pad=3)
    return figure


def _differences(case: Case) -> list[xr.DataArray]:
    return [forecast.copy(data=forecast.values - case.observed.values) for forecast in case.forecasts.values()]


def _tile_size(field: xr.DataArray) -> tuple[int, int]:
    shape = aspect(field)
    return round(TILE_PIXELS / max(1.0, shape)), round(TILE_PIXELS * min(1.0, shape))


def _mean(field: xr.DataArray) -> xr.DataArray:
    return field.mean(MEMBER, keep_attrs=True) if MEMBER in field.dims else field


def _frame_title(case: Case, lead: int) -> str:
    minutes = lead_minutes(case.observed.to_dataset(name="field"))[lead]
    valid = pd.Timestamp(case.init_time) + pd.Timedelta(minutes=minutes)
    ahead = f"+{minutes} min" if minutes < 180 else f"+{minutes / 60:g} h"
    return f"{valid:%H:%M} UTC ({ahead})"


def _case_title(case: Case) -> str:
    return f"Forecasts from {pd.Timestamp(case.init_time):%Y-%m-%d %H:%M} UTC"
