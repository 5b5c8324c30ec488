"""Pictures of scores and of cases, drawn without any global plotting state; equal input gives equal bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm, Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from pipeline.colours import COLOURS, SPARE_COLOURS
from pipeline.schema import LEAD_TIME, RAIN_RATE_UNITS, TIME, VALID_TIME, X, Y, lead_minutes

MISSING = "#c4c4c4"
INK, FAINT = "#222222", "#dddddd"
RAIN_LEVELS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0)  # mm/h
RAIN_COLOURS = ("#a6dcf2", "#4fb3e8", "#2a6fd6", "#2fae4a", "#8bd32f", "#f7e11e", "#f59a1b", "#e0301e")
RAIN_UNDER, RAIN_OVER = "#ffffff", "#b0188c"
STRIP_PIXELS = 512
GIF_MILLISECONDS = 450


@dataclass(frozen=True)
class Panel:
    """One small picture of `skill_figure`: a value per model and lead, and how to read it."""

    title: str
    unit: str
    values: Mapping[str, Mapping[int, float]]  # model -> lead in minutes -> value
    perfect: float | None = None  # drawn as a thin line when given
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Case:
    """One init time: what was observed, what each model forecast; every array `(lead_time, y, x)` with `units`."""

    init_time: np.datetime64
    observed: xr.DataArray
    forecasts: Mapping[str, xr.DataArray]


def case_of(observed: xr.DataArray, forecasts: Mapping[str, xr.DataArray], init_time: np.datetime64) -> Case:
    """Return the case of one init time, in memory, from observations `(time, y, x)` and each model's forecasts."""
    cut = {name: array.sel(init_time=init_time).load() for name, array in forecasts.items()}
    any_forecast = next(iter(cut.values()))
    actual = observed.sel({TIME: any_forecast[VALID_TIME].values}).load()
    actual = actual.rename({TIME: LEAD_TIME}).assign_coords({LEAD_TIME: any_forecast[LEAD_TIME].values})
    return Case(init_time, actual, cut)


def spread_out(count: int, length: int) -> list[int]:
    """Return at most `count` indices spread evenly over `length`, the last one included."""
    return sorted({round((k + 1) * length / count) - 1 for k in range(count)} - {-1})


def lead_unit(leads: Sequence[int]) -> tuple[int, str]:
    """Return how leads in minutes are spoken of: minutes per unit, and the unit's name."""
    return (60, "hours") if max(leads) >= 180 and all(lead % 60 == 0 for lead in leads) else (1, "minutes")


def model_style(name: str, references: Sequence[str], names: Sequence[str]) -> dict[str, Any]:
    """Return the line style that is a model's own in every picture; names without a fixed colour get spare ones."""
    others = [other for other in sorted(names) if other not in COLOURS]
    colour = COLOURS.get(name) or SPARE_COLOURS[others.index(name) % len(SPARE_COLOURS)]
    dashed = name in references
    return {"color": colour, "linestyle": (0, (4, 1.5)) if dashed else "-", "linewidth": 1.4 if dashed else 2.2}


def skill_figure(panels: Sequence[Panel], references: Sequence[str], note: str) -> Figure:
    """Return small multiples of all models against lead time, with one legend and `note` underneath."""
    columns = 4 if len(panels) > 3 else max(1, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns, 2.55 * rows + 0.9), dpi=130, facecolor="white", layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    names = list(panels[0].values)
    for axis, panel in zip(axes, panels, strict=False):
        _draw_panel(axis, panel, references)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis in axes[max(0, len(panels) - columns) : len(panels)]:
        axis.set_xlabel(f"lead time, {lead_unit(list(panels[0].values[names[0]]))[1]}", fontsize=8, color=INK)
    handles = axes[0].get_lines()[: len(names)]
    labels = [readable(name) for name in names]
    figure.legend(handles, labels, loc="outside upper center", ncols=min(6, len(names)), frameon=False, fontsize=9)
    figure.supxlabel(note, fontsize=8, color="#555555")
    return figure


def case_figure(case: Case, frames: int = 4) -> Figure:
    """Return the observed and each model's fields, a column each, at a few leads, a row each, in one colour scale."""
    fields = {"observed": case.observed, **case.forecasts}
    leads = spread_out(frames, case.observed.sizes[LEAD_TIME])
    aspect = _aspect(case.observed)
    size = (1.75 * len(fields) + 1.4, 1.75 * aspect * len(leads) + 1.2)
    figure = Figure(figsize=size, dpi=120, facecolor="white", layout="constrained")
    axes = figure.subplots(len(leads), len(fields), squeeze=False, sharex=True, sharey=True)
    cmap, norm = colour_scale(case.observed)
    for row, lead in enumerate(leads):
        for axis, (name, field) in zip(axes[row], fields.items(), strict=True):
            _draw_field(axis, field[lead], cmap, norm)
            heading = f"{readable(name)}\n" if row == 0 else ""
            axis.set_title(heading, fontsize=9.5, fontweight="bold", color=INK, pad=2)
            axis.annotate(
                _frame_title(case, lead), (0.5, 1), (0, 3), "axes fraction", "offset points",
                ha="center", fontsize=7, color="#555555",
            )  # fmt: skip
        axes[row, 0].set_ylabel(_axis_label(case.observed[Y], "y"), fontsize=7)
    for axis in axes[-1]:
        axis.set_xlabel(_axis_label(case.observed[X], "x"), fontsize=7)
    _colour_bar(figure, axes.ravel().tolist(), case.observed, cmap, norm)
    figure.suptitle(_case_title(case), fontsize=11, color=INK, x=0.01, ha="left")
    return figure


def case_animation(case: Case) -> list[np.ndarray]:
    """Return one picture a lead, `(height, width, 3)` uint8: the observed beside each model."""
    fields = {"observed": case.observed, **case.forecasts}
    columns = min(4, len(fields))
    rows = -(-len(fields) // columns)
    size = (2.1 * columns + 0.8, (1.93 * _aspect(case.observed) + 0.22) * rows + 0.35)
    figure = Figure(figsize=size, dpi=100, facecolor="white", layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    cmap, norm = colour_scale(case.observed)
    images = []
    for axis, (name, field) in zip(axes, fields.items(), strict=False):
        images.append(_draw_field(axis, field[0], cmap, norm))
        axis.set_title(readable(name), fontsize=9, fontweight="bold" if name == "observed" else "normal", pad=3)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[len(fields) :]:
        axis.set_axis_off()
    _colour_bar(figure, axes.tolist(), case.observed, cmap, norm)
    title = figure.suptitle(f"{_case_title(case)} · {_frame_title(case, 0)}", fontsize=10, x=0.01, ha="left")
    frames = []
    for lead in range(case.observed.sizes[LEAD_TIME]):
        for image, field in zip(images, fields.values(), strict=True):
            image.set_data(np.ma.masked_invalid(field[lead].values))
        title.set_text(f"{_case_title(case)} · {_frame_title(case, lead)}")
        frames.append(_pixels(canvas))
    return frames


def case_strip(case: Case, model: str, frames: int = 3) -> np.ndarray:
    """Return one model's tile `(height, width, 3)` uint8: observed above, forecast below, at a few leads."""
    leads = spread_out(frames, case.observed.sizes[LEAD_TIME])
    height = 2 * _aspect(case.observed) / len(leads) + 0.06  # for each unit of width
    inches = STRIP_PIXELS / 128
    figure = Figure(figsize=(inches, inches * min(height, 1.5)), dpi=128, facecolor="white")
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    canvas = FigureCanvasAgg(figure)
    axes = figure.subplots(2, len(leads), squeeze=False)
    cmap, norm = colour_scale(case.observed)
    for row, (name, field) in enumerate({"observed": case.observed, model: case.forecasts[model]}.items()):
        for axis, lead in zip(axes[row], leads, strict=True):
            _draw_field(axis, field[lead], cmap, norm)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_title(_frame_title(case, lead) if row == 0 else "", fontsize=6, pad=2)
        axes[row, 0].set_ylabel(readable(name), fontsize=7)
    return _pixels(canvas)


def colour_scale(observed: xr.DataArray) -> tuple[Colormap, Normalize]:
    """Return the colours of a field: steps for a rain rate, else viridis over the range that was observed."""
    if observed.attrs.get("units") == RAIN_RATE_UNITS:
        steps = ListedColormap(list(RAIN_COLOURS), name="rain").with_extremes(
            under=RAIN_UNDER, over=RAIN_OVER, bad=MISSING
        )
        return steps, BoundaryNorm(RAIN_LEVELS, len(RAIN_COLOURS))
    finite = observed.values[np.isfinite(observed.values)]
    low, high = np.percentile(finite, (0.5, 99.5)) if finite.size else (0.0, 1.0)
    return colormaps["viridis"].with_extremes(bad=MISSING), Normalize(low, high if high > low else low + 1.0)


def readable(name: str) -> str:
    """Return a model's name as a person writes it."""
    return name.replace("_", " ")


def write_png(figure: Figure, path: Path) -> None:
    """Write `figure` without the library's version in the file, so that equal figures are equal bytes."""
    FigureCanvasAgg(figure)
    figure.savefig(path, format="png", metadata={"Software": None})


def write_gif(frames: Sequence[np.ndarray], path: Path) -> None:
    """Write pictures `(height, width, 3)` as an endless animation; the last one is held."""
    durations = [GIF_MILLISECONDS] * (len(frames) - 1) + [4 * GIF_MILLISECONDS]
    timing = durations if len(frames) > 1 else GIF_MILLISECONDS  # one frame takes no list
    iio.imwrite(path, np.stack(frames), extension=".gif", duration=timing, loop=0)


def _draw_panel(axis: Axes, panel: Panel, references: Sequence[str]) -> None:
    if panel.perfect is not None:
        axis.axhline(panel.perfect, color="#999999", linewidth=0.8, zorder=0)
    minutes = list(next(iter(panel.values.values())))
    divisor, _ = lead_unit(minutes)
    leads = [lead / divisor for lead in minutes]
    for name, by_lead in panel.values.items():
        style = model_style(name, references, list(panel.values))
        marker = "o" if len(by_lead) < 3 else None
        axis.plot([lead / divisor for lead in by_lead], list(by_lead.values()), marker=marker, markersize=4, **style)
        axis.lines[-1].set_zorder(2 if name in references else 3)
    axis.set_title(panel.title, fontsize=9.5, loc="left", color=INK, fontweight="bold", pad=4)
    axis.set_title(panel.unit, fontsize=8, loc="right", color="#666666", pad=4)
    axis.set_xticks([leads[k] for k in spread_out(4, len(leads))])
    axis.set_xlim(leads[0] - 0.03 * leads[-1], leads[-1] * 1.03)
    if panel.limits is not None:
        axis.set_ylim(*panel.limits)
    if not any(np.isfinite(value) for by_lead in panel.values.values() for value in by_lead.values()):
        axis.text(0.5, 0.5, "undefined: no such event", transform=axis.transAxes, ha="center", fontsize=8)
    axis.tick_params(labelsize=8, color=FAINT, labelcolor=INK)
    axis.grid(color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#aaaaaa")


def _draw_field(axis: Axes, field: xr.DataArray, cmap: Colormap, norm: Normalize) -> AxesImage:
    y, x = (_display(field[name]) for name in (Y, X))
    extent = (*_edges(x), *_edges(y))
    image = axis.imshow(
        np.ma.masked_invalid(field.values), extent=extent, origin="lower", cmap=cmap, norm=norm, interpolation="nearest"
    )
    if y[0] > y[-1]:
        axis.set_ylim(extent[3], extent[2])
    axis.tick_params(labelsize=6, length=2, color=FAINT)
    axis.locator_params(nbins=4)
    for spine in axis.spines.values():
        spine.set_color("#aaaaaa")
    return image


def _edges(centres: np.ndarray) -> tuple[float, float]:
    half = (centres[-1] - centres[0]) / (centres.size - 1) / 2
    return float(centres[0] - half), float(centres[-1] + half)


def _display(axis: xr.DataArray) -> np.ndarray:
    """Return coordinates as they are labelled: metres become km, all else stays."""
    values = np.asarray(axis.values, np.float64)
    return values / 1000 if str(axis.attrs.get("units", "")) in ("m", "metre", "meter") else values


def _axis_label(axis: xr.DataArray, name: str) -> str:
    units = str(axis.attrs.get("units", ""))
    if units in ("m", "metre", "meter", "km"):
        return f"{name}, km"
    return f"{'latitude' if name == Y else 'longitude'}, °" if units.startswith("degree") else f"{name}, cells"


def _aspect(field: xr.DataArray) -> float:
    height, width = (abs(np.subtract(*_edges(_display(field[name])))) for name in (Y, X))
    return float(np.clip(height / width, 0.4, 2.0))


def _colour_bar(figure: Figure, axes: list[Axes], observed: xr.DataArray, cmap: Colormap, norm: Normalize) -> None:
    rain = isinstance(norm, BoundaryNorm)
    bar = figure.colorbar(
        ScalarMappable(norm, cmap), ax=axes, extend="both", shrink=0.9, aspect=35, pad=0.01,
        ticks=list(RAIN_LEVELS) if rain else None,
    )  # fmt: skip
    if rain:
        bar.ax.set_yticklabels([f"{level:g}" for level in RAIN_LEVELS])
    bar.ax.tick_params(labelsize=7)
    name = str(observed.attrs.get("long_name", observed.name)).replace("_", " ")
    bar.set_label(f"{name}, {readable_units(str(observed.attrs.get('units', '')))} (grey: missing)", fontsize=8)


def readable_units(units: str) -> str:
    """Return units as people write them: 'mm h-1' -> 'mm/h'; dimensionless is 'value'."""
    return {RAIN_RATE_UNITS: "mm/h", "1": "value", "": "value"}.get(units, units)


def _frame_title(case: Case, lead: int) -> str:
    minutes = lead_minutes(case.observed.to_dataset(name="field"))[lead]
    valid = pd.Timestamp(case.init_time) + pd.Timedelta(minutes=minutes)
    ahead = f"+{minutes} min" if minutes < 180 else f"+{minutes / 60:g} h"
    return f"{valid:%H:%M} UTC ({ahead})"


def _case_title(case: Case) -> str:
    return f"Forecasts from {pd.Timestamp(case.init_time):%Y-%m-%d %H:%M} UTC"


def _pixels(canvas: FigureCanvasAgg) -> np.ndarray:
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
