"""Pictures of scores: curves over lead time, spectra, reliability, ranks, performance and cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from fieldcast.pipeline.datasets.labels import COLOURS, lead_unit, readable
from fieldcast.pipeline.report.style import FAINT, INK, LINES, SOFT, Styles, spread_out

DPI = 160
SKILL_COLUMNS, LEGEND_COLUMNS = 4, 6
GUIDE = "#999999"  # lines of a perfect forecast
BAND = 0.16  # opacity of a band
ROOM = 0.25  # above and below the curves, of their range
WAVELENGTHS_KM = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
VALUE_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
BIASES = (0.5, 0.8, 1.0, 1.25, 2.0)  # frequency biases with a line in a performance diagram
PARTS = 5  # of a cost picture's height that two names need between them, in per cent


@dataclass(frozen=True)
class Panel:
    """One small picture of scores: a value per model and lead, and how to read it."""

    title: str
    unit: str
    values: Mapping[str, Mapping[float, float]]  # model -> lead in minutes -> value
    perfect: float | None = None  # drawn as a thin line when given
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Gain:
    """Differences of models from the best reference at each lead, with their intervals: value, low and high.

    `zero` is the reference at each lead, whose own differences are 0; `banded` are models whose intervals are drawn.
    """

    title: str
    unit: str
    differences: Mapping[str, Mapping[float, tuple[float, float, float]]]  # model -> lead in minutes
    zero: Mapping[float, str]
    banded: Sequence[str]


@dataclass(frozen=True)
class Spectrum:
    """Power by wavelength (km) of the observed and of each model at one lead, in minutes."""

    lead: float
    wavelength_km: np.ndarray
    observed: np.ndarray
    forecasts: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Bins:
    """Forecast probabilities and observed events, by bin of probability: cells, summed probability, events."""

    count: np.ndarray
    probability: np.ndarray
    events: np.ndarray


@dataclass(frozen=True)
class Reliability:
    """The reliability of probabilities of one event, such as '≥ 1 mm/h', for each model."""

    title: str
    models: Mapping[str, Bins]


@dataclass(frozen=True)
class Performance:
    """POD and FAR of each model for one event at one lead, as the title says."""

    title: str
    points: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class EconomicValue:
    """Value of each model to users with each ratio of cost to loss, for one event such as '≥ 1 mm/h'."""

    title: str
    ratios: np.ndarray
    models: Mapping[str, np.ndarray]


def skill_figure(panels: Sequence[np.ndarray], names: Sequence[str], styles: Styles, note: str) -> Figure:
    """Return the pictures of all panels `(height, width, 3)` in one, with a legend above and `note` underneath."""
    columns = min(SKILL_COLUMNS, len(panels))
    blank = np.full_like(panels[0], 255)
    rows = [[*panels[k : k + columns], *[blank] * columns][:columns] for k in range(0, len(panels), columns)]
    picture = np.concatenate([np.concatenate(row, axis=1) for row in rows])
    lines = -(-len(names) // LEGEND_COLUMNS)
    above, below = 20 + 30 * lines, 36  # pixels
    picture = np.pad(picture, ((above, below), (0, 0), (0, 0)), constant_values=255)
    figure = Figure(figsize=(picture.shape[1] / DPI, picture.shape[0] / DPI), dpi=DPI, facecolor="white")
    figure.figimage(picture, zorder=-1)
    handles = [Line2D([], [], label=readable(name), **styles[name]) for name in names]
    figure.legend(handles=handles, loc="upper center", ncols=min(LEGEND_COLUMNS, len(names)), frameon=False, fontsize=9)
    figure.text(0.5, 8 / picture.shape[0], note, fontsize=8, color=SOFT, ha="center")
    return figure


def panel_figure(panel: Panel, styles: Styles) -> Figure:
    """Return one panel by itself, without a legend."""
    figure = _figure(3.7, 2.7)
    axis = figure.subplots()
    _draw_panel(axis, panel, styles)
    leads = list(next(iter(panel.values.values())))
    axis.set_xlabel(f"lead time, {lead_unit(leads)[1]}", fontsize=8, color=INK)
    return figure


def gain_figure(gain: Gain, styles: Styles) -> Figure:
    """Return differences from the best reference over the lead, as lines in bands; 0 is drawn as that reference.

    The axis is that of the models with bands: a reference that is far off leaves the picture.
    """
    figure = _figure(3.7, 2.7)
    axis = figure.subplots()
    divisor, unit = lead_unit(list(gain.zero))
    leads = np.array([lead / divisor for lead in gain.zero])
    for name, by_lead in gain.differences.items():
        value, low, high = np.array([by_lead[lead] for lead in gain.zero]).T
        marker = "o" if len(leads) < 3 else None
        axis.plot(leads, value, marker=marker, markersize=4, **styles[name])
        if name in gain.banded:
            axis.fill_between(leads, low, high, color=styles[name]["color"], alpha=BAND, linewidth=0, zorder=1)
    _draw_zero(axis, leads, list(gain.zero.values()), styles)
    shown = [end for name in gain.banded for part in gain.differences[name].values() for end in part]
    shown = [end for end in shown if math.isfinite(end)]
    if shown:
        room = 0.08 * (max(*shown, 0) - min(*shown, 0)) or 1.0
        axis.set_ylim(min(*shown, 0) - room, max(*shown, 0) + room)
    axis.set_xticks(leads[spread_out(4, len(leads))])
    axis.set_xlim(leads[0] - 0.03 * leads[-1], leads[-1] * 1.06)
    dress(axis, gain.title, gain.unit)
    axis.set_xlabel(f"lead time, {unit}", fontsize=8, color=INK)
    return figure


def _draw_zero(axis: Axes, leads: np.ndarray, names: Sequence[str], styles: Styles) -> None:
    """Draw 0 in the line of the reference that is the best at each lead, up to half way to the next."""
    edges = np.concatenate([leads[:1], (leads[1:] + leads[:-1]) / 2, leads[-1:]])
    starts = [k for k, name in enumerate(names) if k == 0 or name != names[k - 1]]
    for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        axis.plot(edges[[start, stop]], (0, 0), **{**styles[names[start]], "linewidth": 2.0, "zorder": 2.5})


def ratio_figure(title: str, ratios: Mapping[datetime, float], limit: float) -> Figure:
    """Return errors relative to persistence over init times, UTC, with a dashed line at the highest allowed ratio."""
    figure = _figure(3.7, 2.7)
    axis = figure.subplots()
    times, values = (np.array(side) for side in zip(*sorted(ratios.items()), strict=True))
    axis.plot(times, values, color=COLOURS["convlstm"], linewidth=2.2, marker="o", markersize=3.5)
    axis.axhline(limit, color=GUIDE, linewidth=1.2, linestyle="--")
    axis.set_ylim(0, 1.15 * max(limit, values.max()))
    locator = AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]
    axis.xaxis.get_offset_text().set_fontsize(8)
    dress(axis, title, "below 1: better")
    axis.set_xlabel("init time, UTC", fontsize=8, color=INK)
    return figure


def spectra_figure(spectra: Sequence[Spectrum], styles: Styles) -> Figure:
    """Return the power of the observed and of each model over the wavelength, a panel a lead.

    Power lower than the observed one at short wavelengths is what a blurred forecast looks like.
    """
    figure = _figure(4.2 * len(spectra), 3.2)
    for axis, spectrum in zip(figure.subplots(1, len(spectra), squeeze=False)[0], spectra, strict=True):
        axis.plot(spectrum.wavelength_km, spectrum.observed, color=INK, linewidth=4, alpha=0.25)
        for name, power in spectrum.forecasts.items():
            axis.plot(spectrum.wavelength_km, power, label=readable(name), **styles[name])
        axis.set_xscale("log")
        axis.set_yscale("log")
        longest, shortest = float(spectrum.wavelength_km.max()), float(spectrum.wavelength_km.min())
        axis.set_xlim(longest, shortest)  # large scales on the left, as everywhere in the field
        axis.set_xticks([tick for tick in WAVELENGTHS_KM if shortest <= tick <= longest])
        axis.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        powers = spectrum.observed[spectrum.observed > 0]
        if powers.size:
            axis.set_ylim(powers.min() / 100, powers.max() * 4)  # a smooth forecast falls without end
        dress(axis, f"Lead {_lead_text(spectrum.lead)}", "power")
        axis.set_xlabel("wavelength, km", fontsize=8, color=INK)
    return figure


def reliability_figure(reliability: Reliability, styles: Styles) -> Figure:
    """Return how often the event came over how probable it was said to be, above the shares of each probability.

    Bins without a forecast have no point; the diagonal is perfect, the flat line the event's frequency.
    """
    figure = _figure(3.7, 4.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color=GUIDE, linewidth=0.8)
    for name, bins in reliability.models.items():
        there = bins.count > 0
        said, came = bins.probability[there] / bins.count[there], bins.events[there] / bins.count[there]
        upper.plot(said, came, marker="o", markersize=3.5, **styles[name])
        share = bins.count / max(bins.count.sum(), 1)
        lower.plot(
            (np.arange(share.size) + 0.5) / share.size, np.where(share > 0, share, np.nan), marker=".", **styles[name]
        )
    frequency = _frequency(reliability)
    if math.isfinite(frequency):
        upper.axhline(frequency, color=GUIDE, linewidth=0.8, linestyle=":")
    upper.set(xlim=(0, 1), ylim=(0, 1))
    lower.set_yscale("log")
    dress(upper, f"Event {reliability.title}", "observed frequency")
    dress(lower, "Sharpness", "share of forecasts")
    lower.set_xlabel("forecast probability", fontsize=8, color=INK)
    return figure


def rank_figure(name: str, counts: np.ndarray, styles: Styles) -> Figure:
    """Return how often the observed fell between which members of a model, relative to a flat histogram."""
    figure = _figure(3.7, 2.5)
    axis = figure.subplots()
    share = counts * counts.size / counts.sum() if counts.sum() > 0 else np.zeros(counts.size)
    axis.bar(np.arange(counts.size), share, color=styles[name]["color"], width=0.85)
    axis.axhline(1, color=GUIDE, linewidth=0.8)
    dress(axis, readable(name), "relative to flat")
    axis.set_xlabel("members below the observed", fontsize=8, color=INK)
    return figure


def performance_figure(performance: Performance, styles: Styles) -> Figure:
    """Return POD over success ratio (1 - FAR) with lines of equal CSI and rays of equal frequency bias.

    Source: Roebber (2009), Weather and Forecasting 24, 601-608. The upper right corner is perfect.
    """
    figure = _figure(4.4, 4.3)
    axis = figure.subplots()
    ratio, pod = np.meshgrid(np.linspace(0.001, 1, 200), np.linspace(0.001, 1, 200))
    lines = axis.contour(
        ratio, pod, 1 / (1 / ratio + 1 / pod - 1), np.arange(0.1, 1, 0.1), colors="#b8bcc2", linewidths=0.7
    )
    axis.clabel(lines, fmt="CSI %.1f", fontsize=6, levels=np.asarray(lines.levels)[1::2])
    for bias in BIASES:
        end = (min(1.0, 1 / bias), min(1.0, bias))
        axis.plot((0, end[0]), (0, end[1]), color="#b8bcc2", linewidth=0.7, linestyle="--")
        place = {"xytext": (2, 2)} if bias >= 1 else {"xytext": (-2, 2), "ha": "right"}  # names are on the right
        axis.annotate(f"{bias:g}", end, textcoords="offset points", fontsize=6, color=SOFT, **place)
    points = {name: (1 - far, pod) for name, (pod, far) in performance.points.items()}
    _named_points(axis, points, styles)
    axis.set(xlim=(0, 1), ylim=(0, 1))
    dress(axis, performance.title, "", pad=12)
    axis.set_xlabel("success ratio, 1 − FAR (dashed: frequency bias)", fontsize=8, color=INK)
    axis.set_ylabel("POD", fontsize=8, color=INK)
    return figure


def value_figure(value: EconomicValue, styles: Styles) -> Figure:
    """Return the value of each model over the ratio of cost to loss, from 0, no better than the climate, to 1."""
    figure = _figure(3.7, 2.9)
    axis = figure.subplots()
    for name, values in value.models.items():
        axis.plot(value.ratios, values, **styles[name])
    axis.axhline(0, color=GUIDE, linewidth=0.8)
    axis.set_xscale("log")
    axis.set_xticks(VALUE_TICKS)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(xlim=(value.ratios[0], value.ratios[-1]), ylim=(-0.1, 1))
    dress(axis, f"Event {value.title}", "economic value")
    axis.set_xlabel("cost of protection / loss", fontsize=8, color=INK)
    return figure


def cost_figure(milliseconds: Mapping[str, float], skill: Mapping[str, float], label: str, styles: Styles) -> Figure:
    """Return each model's skill over the time of one forecast; models without either are left out."""
    figure = _figure(5.6, 3.6)
    axis = figure.subplots()
    points = {
        name: (milliseconds[name], skill[name])
        for name in milliseconds
        if milliseconds[name] > 0 and math.isfinite(skill.get(name, math.nan))
    }
    axis.set_xscale("log")
    if points:
        across, along = (np.asarray(values) for values in zip(*points.values(), strict=True))
        room = 0.12 * max(float(np.ptp(along)), 1e-3)
        axis.set_xlim(across.min() / 2, across.max() * 2)
        axis.set_ylim(along.min() - room, along.max() + room)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{tick:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    _named_points(axis, points, styles)
    dress(axis, label, "")
    axis.set_xlabel("milliseconds for one forecast", fontsize=8, color=INK)
    return figure


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights in the same order that lie at least `gap` from one another and as near as that allows.

    Neighbours that touch are spread around their mean (pool adjacent violators on heights less k gaps).
    """
    order = sorted(range(len(heights)), key=lambda k: (heights[k], k))
    pools: list[tuple[float, int]] = []  # mean of heights less k gaps, and how many they are
    for k, index in enumerate(order):
        pools.append((heights[index] - k * gap, 1))
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (first, m), (second, n) = pools[-2:]
            pools[-2:] = [((first * m + second * n) / (m + n), m + n)]
    bases = [base for base, count in pools for _ in range(count)]
    places = [0.0] * len(heights)
    for k, (index, base) in enumerate(zip(order, bases, strict=True)):
        places[index] = base + k * gap
    return places


def _named_points(axis: Axes, points: Mapping[str, tuple[float, float]], styles: Styles) -> None:
    """Draw a point a model in the axis's own limits, names in a column at the right that no two share a line of."""
    known = {name: point for name, point in points.items() if all(map(math.isfinite, point))}
    low, high = axis.get_ylim()
    shares = [(y - low) / (high - low) for _, y in known.values()]
    for (name, point), place in zip(known.items(), apart(shares, PARTS / 100), strict=True):
        face = "white" if styles[name]["linestyle"] not in LINES else styles[name]["color"]
        axis.plot(*point, marker="o", markersize=6, color=styles[name]["color"], markerfacecolor=face, linestyle="none")
        axis.annotate(
            readable(name), point, (1.03, place), textcoords="axes fraction", fontsize=7.5, color=styles[name]["color"],
            va="center", arrowprops={"arrowstyle": "-", "color": styles[name]["color"], "linewidth": 0.4, "alpha": 0.6},
        )  # fmt: skip


def _draw_panel(axis: Axes, panel: Panel, styles: Styles) -> None:
    minutes = list(next(iter(panel.values.values())))
    divisor, _ = lead_unit(minutes)
    leads = [lead / divisor for lead in minutes]
    ticks = spread_out(4, len(leads))
    for name, by_lead in panel.values.items():
        marker = "o" if len(by_lead) < 3 else None
        axis.plot(
            [lead / divisor for lead in by_lead], list(by_lead.values()), marker=marker, markersize=4, **styles[name]
        )
    if panel.perfect is not None:
        axis.axhline(panel.perfect, color=GUIDE, linewidth=0.8, zorder=0)
    axis.set_xticks([leads[tick] for tick in ticks])
    axis.set_xlim(leads[0] - 0.03 * leads[-1], leads[-1] * 1.06)
    known = [value for by_lead in panel.values.values() for value in by_lead.values() if np.isfinite(value)]
    if panel.limits is not None:
        axis.set_ylim(*panel.limits)
    elif known and max(known) > min(known):
        room = ROOM * (max(known) - min(known))
        least = min(known) - room
        axis.set_ylim(max(least, 0) if min(known) >= 0 else least, max(known) + room)
    if not known:
        axis.text(0.5, 0.5, "undefined: no such event", transform=axis.transAxes, ha="center", fontsize=8)
    dress(axis, panel.title, panel.unit)


def dress(axis: Axes, title: str, unit: str, pad: float = 4) -> None:
    """Give a picture its title, the unit at the right, and the frame that all pictures have."""
    axis.set_title(title, fontsize=9.5, loc="left", color=INK, fontweight="bold", pad=pad)
    axis.set_title(unit, fontsize=8, loc="right", color=SOFT, pad=pad)
    axis.tick_params(labelsize=8, color=FAINT, labelcolor=INK, which="both")
    axis.grid(color=FAINT, linewidth=0.6)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("#aaaaaa")


def _figure(width: float, height: float, dpi: int = DPI) -> Figure:
    return Figure(figsize=(width, height), dpi=dpi, facecolor="white", layout="constrained")


def _frequency(reliability: Reliability) -> float:
    bins = next(iter(reliability.models.values()))
    return float(bins.events.sum() / bins.count.sum()) if bins.count.sum() > 0 else math.nan


def _lead_text(minutes: float) -> str:
    divisor, unit = lead_unit([minutes])
    return f"{minutes / divisor:g} {unit}"
