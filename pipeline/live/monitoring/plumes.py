"""Places on the status page: a plume of the newest forecast for each, and a table with how their ranges have done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from fieldcast.pipeline.datasets.labels import COLOURS, readable, readable_units
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, TIME
from fieldcast.pipeline.live.monitoring.charts import Chart, address_of
from fieldcast.pipeline.live.places.issue import (
    CALIBRATED,
    OBSERVED_TIME,
    PLACE,
    PLACE_NAME,
    QUANTILE,
    SHOWN,
    VOLUME,
    forecast_names,
)
from fieldcast.pipeline.live.places.ranges import FIX
from fieldcast.pipeline.live.places.scores import STATION, PlaceScores
from fieldcast.pipeline.report.plots import DPI, dress
from fieldcast.pipeline.report.style import INK, spread_out

MOST_PLUMES = 12
LEADS = 3  # in the table
LOW, MIDDLE, HIGH = (next(k for k, title in SHOWN.items() if title == wanted) for wanted in ("p10", "p50", "p90"))
INNER = tuple(next(k for k, title in SHOWN.items() if title == wanted) for wanted in ("p30", "p70"))


@dataclass(frozen=True)
class PlacesPart:
    """What the page shows of places: the picture, the heads of a table and its rows, the notes below."""

    chart: Chart
    columns: list[str]
    rows: list[list[str]]
    notes: list[str]


def places_part(issued: xr.Dataset, scores: Sequence[PlaceScores]) -> PlacesPart:
    """Return what the page shows of the newest forecast for places, and of their verification."""
    names = [name for name in forecast_names(issued) if not name.endswith(VOLUME)]
    chosen = spread_out(LEADS, issued.sizes[TIME])
    columns = ["place"]
    for name in names:
        title = f"{readable(name)}, {readable_units(issued[name].attrs['units'])}"
        columns += [f"{title}, {_ahead(issued, step)}" for step in _steps(name, names, chosen)]
    columns += ["in 80 % range", "CRPS", "against"]
    rows = []
    for place, title in enumerate(issued[PLACE_NAME].values.tolist()):
        cells = [_range(issued, name, place, step) for name in names for step in _steps(name, names, chosen)]
        rows.append([title, *cells, *_scored(title, names[0], scores)])
    notes = [
        "Median and, in brackets, the range that holds 80 %. What has been issued is verified over all lead times."
    ]
    raw = [name for name, done in zip(issued[PLACE_NAME].values, issued[CALIBRATED].values, strict=True) if not done]
    if raw:
        notes.append(f"Not calibrated for {', '.join(raw)}: {FIX} does it for the model of live.model.")
    if len(rows) > MOST_PLUMES:
        notes.append(f"Drawn are the first {MOST_PLUMES} of {len(rows)} places.")
    return PlacesPart(plume_chart(issued), columns, rows, notes)


def plume_chart(issued: xr.Dataset) -> Chart:
    """Return the forecast of the first variable for each place over time: observed, median, ranges of 40 and 80 %."""
    name = forecast_names(issued)[0]
    count = min(issued.sizes[PLACE], MOST_PLUMES)
    columns = count if count < 4 else 2 if count == 4 else 3
    rows = -(-count // columns)
    figure = Figure(figsize=(3.7 * columns, 2.3 * rows), dpi=DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for place, axis in enumerate(panels):
        if place < count:
            _draw_plume(axis, issued.isel({PLACE: place}), name)
        else:
            axis.set_visible(False)
    moment = pd.Timestamp(issued[INIT_TIME].item())
    description = f"Forecasts of {readable(name)} for {count} places from {moment:%Y-%m-%d %H:%M} UTC, as in the table"
    return Chart(address_of(figure), description, [("issued", "forecast"), ("observed", "observed")])


def _draw_plume(axis: Axes, place: xr.Dataset, name: str) -> None:
    colour = COLOURS["convlstm"]
    ranks, times = place[f"{name}_{QUANTILE}"].values, place[TIME].values
    axis.fill_between(times, ranks[LOW], ranks[HIGH], color=colour, alpha=0.18, linewidth=0)
    axis.fill_between(times, *(ranks[level] for level in INNER), color=colour, alpha=0.28, linewidth=0)
    line = np.where(np.isfinite(ranks[MIDDLE]), ranks[MIDDLE], place[name].values)
    axis.plot(times, line, color=colour, linewidth=2)
    axis.plot(place[OBSERVED_TIME].values, place[f"{name}_observed"].values, color=INK, linewidth=1.6, marker=".")
    start = place[INIT_TIME].values
    axis.plot([start, start], [0, 1], color="#999999", linewidth=0.8, transform=axis.get_xaxis_transform())
    if place[name].min() >= 0:
        axis.set_ylim(0, max(1.05 * float(np.nanmax([*ranks[HIGH], *place[name].values, 1e-3])), axis.get_ylim()[1]))
    locator = AutoDateLocator(minticks=3, maxticks=5)  # type: ignore[no-untyped-call]
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(ConciseDateFormatter(locator, show_offset=False))  # type: ignore[no-untyped-call]
    dress(axis, str(place[PLACE_NAME].item()), readable_units(place[name].attrs["units"]))


def _steps(name: str, names: Sequence[str], chosen: Sequence[int]) -> Sequence[int]:
    """Return the leads of a quantity in the table: of what adds up over time the last alone."""
    return chosen if name == names[0] or f"{name}_amount" in names else chosen[-1:]


def _ahead(issued: xr.Dataset, step: int) -> str:
    return f"+{issued[LEAD_TIME].values[step]:g} min"


def _range(issued: xr.Dataset, name: str, place: int, step: int) -> str:
    """Return the median and its range, all with the digits that the largest of them needs."""
    ranks = issued[f"{name}_{QUANTILE}"].values[[MIDDLE, LOW, HIGH], place, step]
    if not np.isfinite(ranks).all():
        return f"{issued[name].values[place, step]:.3g}"
    largest = np.abs(ranks).max()
    digits = max(0, 1 - int(np.floor(np.log10(largest)))) if largest > 0 else 0
    middle, low, high = (f"{value:.{digits}f}" for value in ranks)
    return f"{middle} ({low}–{high})"


def _scored(place: str, quantity: str, scores: Sequence[PlaceScores]) -> list[str]:
    found = [score for score in scores if (score.place, score.quantity) == (place, quantity)]
    if not found:
        return ["", "", ""]
    truth = "station" if found[0].truth == STATION else "field"
    return [f"{found[0].inside:.0%} of {found[0].cases}", f"{found[0].crps:.3g}", truth]
