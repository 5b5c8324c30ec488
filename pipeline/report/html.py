"""The report of a comparison: one HTML file that needs no network and no second file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fieldcast.pipeline.datasets.labels import lead_unit, readable
from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.report.maps import MapSeries
from fieldcast.pipeline.report.style import data_address, model_styles
from fieldcast.pipeline.verification.scores import TABLE, Score, Scores, badness, best_at

SECTIONS = ("skill", "spectra", "reliability", "ranks", "coverage", "performance", "cost", "case")
DIFFERENCES = {"better": "▲", "worse": "▼", "no difference": "="}


@dataclass(frozen=True)
class Picture:
    """An image file, what it shows, and the section that it belongs to, one of `SECTIONS`."""

    path: Path
    caption: str
    section: str

    def source(self) -> str:
        """Return the file's content as a `data:` address."""
        return data_address(self.path)


@dataclass(frozen=True)
class Cell:
    """Difference of a model from another: a key of `DIFFERENCES`, the difference of the scores and its interval."""

    word: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Matrix:
    """Differences between pairs of models in one score at one lead, in minutes: row less column."""

    title: str
    lead: float
    cells: Mapping[tuple[str, str], Cell]


@dataclass(frozen=True)
class Groups:
    """One score of each model by group: hour of day, region, intensity or event."""

    title: str
    score: Score
    values: Mapping[str, Mapping[str, float]]  # group -> model -> value


@dataclass(frozen=True)
class Page:
    """Everything the report shows; `metrics` is `{model: {score: {lead in minutes: value}}}`."""

    verdict: Sequence[str]
    metrics: Mapping[str, Scores]
    leading: Sequence[Score]  # whose tables come first
    references: Sequence[str]
    facts: Mapping[str, str]
    pictures: Sequence[Picture]
    settings: Mapping[str, Any]
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)  # model -> why no verdict speaks of it
    matrices: Sequence[Matrix] = ()
    maps: Sequence[MapSeries] = ()
    groups: Sequence[Groups] = ()
    costs: Mapping[str, Costs] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)  # model -> address of its run, or the command that shows it


@dataclass(frozen=True)
class Row:
    """A model's (or a group's) line in a table: (text, class) for each column."""

    name: str
    reference: bool
    cells: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Table:
    """A table with a caption, the heading of its first column, and the names of the others."""

    title: str
    first: str
    columns: Sequence[str]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Slider:
    """The maps of one case as the page needs them: the sheets as addresses, a view of a sheet for each model."""

    title: str
    labels: Sequence[str]
    sheets: Sequence[str]
    scale: str
    size: tuple[int, int]  # of a sheet
    tile: tuple[int, int]
    tiles: Sequence[tuple[str, str, str]]  # name, the view's x y width height, its width / height


def render(page: Page) -> str:
    """Return the report as one HTML document; the pictures are read and embedded."""
    environment = Environment(
        loader=PackageLoader("fieldcast.pipeline.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scores = next(iter(page.metrics.values()))
    others = [score for score in scores if score not in page.leading]
    return environment.get_template("report.html.j2").render(
        verdict=page.verdict,
        left_out={readable(model): reasons for model, reasons in page.left_out.items()},
        legend=legend(list(page.metrics), page.references),
        leading=[score_table(page, score, score.title()) for score in page.leading],
        others=[score_table(page, score, _full_title(score)) for score in others],
        matrices=[matrix_table(matrix, page) for matrix in page.matrices],
        sliders=[slider(series) for series in page.maps],
        groups=[group_table(groups, page) for groups in page.groups],
        costs=cost_table(page.costs, page.references),
        devices=sorted({costs.device for costs in page.costs.values() if costs.device}),
        runs={readable(model): (text, text.startswith(("http:", "https:"))) for model, text in page.runs.items()},
        facts=page.facts,
        settings=flat(page.settings),
        glossary=TABLE.values(),
        pictures={name: [p for p in page.pictures if p.section == name] for name in SECTIONS},
    )


def legend(names: Sequence[str], references: Sequence[str]) -> list[tuple[str, str, float, str]]:
    """Return how each model's line looks, as SVG says it: name, stroke, its width and its dashes."""
    dashes = {"-": "", "-.": "9 3 2 3", ":": "2 3"}
    lines = []
    for name, style in model_styles(names, references).items():
        line = style["linestyle"]
        dash = dashes[line] if isinstance(line, str) else " ".join(f"{2 * length:g}" for length in line[1])
        lines.append((readable(name), style["color"], style["linewidth"] * 1.2, dash))
    return lines


def score_table(page: Page, score: Score, title: str) -> Table:
    """Return one score of all models at all leads, the best values marked; a value that is undefined is a dash."""
    leads = list(next(iter(page.metrics.values()))[score])
    divisor, unit = lead_unit(leads)
    comparable = {model: scores for model, scores in page.metrics.items() if model not in page.left_out}
    best = {lead: best_at(comparable or page.metrics, score, lead) for lead in leads}
    rows = [
        Row(
            readable(model),
            model in page.references,
            [(_text(own[score][lead]), "best" if model in best[lead] else "") for lead in leads],
        )
        for model, own in page.metrics.items()
    ]
    return Table(f"{title}, lead time in {unit}", "model", [f"{lead / divisor:g}" for lead in leads], rows)


def _full_title(score: Score) -> str:
    return ": ".join(filter(None, (readable(score.field), score.title())))


def matrix_table(matrix: Matrix, page: Page) -> Table:
    """Return pairs of models as a table: a sign, the difference and its interval; empty where there is none."""
    names = [name for name in page.metrics if any(name in pair for pair in matrix.cells)]
    divisor, unit = lead_unit([matrix.lead])
    rows = [
        Row(readable(row), row in page.references, [_difference(matrix.cells.get((row, name))) for name in names])
        for row in names
    ]
    title = f"{matrix.title}, {matrix.lead / divisor:g} {unit}: row less column"
    return Table(title, "", [readable(name) for name in names], rows)


def group_table(groups: Groups, page: Page) -> Table:
    """Return one score as a table of groups by models, the best model of each group marked."""
    names = [name for name in page.metrics if any(name in values for values in groups.values.values())]
    rows = []
    for group, values in groups.values.items():
        rank = {name: badness(groups.score, values.get(name, math.nan)) for name in names}
        least = min(rank.values())
        marks = ["best" if rank[name] == least and math.isfinite(least) else "" for name in names]
        texts = [_text(values.get(name, math.nan)) for name in names]
        rows.append(Row(group, False, list(zip(texts, marks, strict=True))))
    return Table(groups.title, "", [readable(name) for name in names], rows)


def cost_table(costs: Mapping[str, Costs], references: Sequence[str]) -> Table:
    """Return what each model costs; a dash where there is none or it was not measured."""
    columns = ("weights", "multiply-adds, millions", "training, s", "one forecast, ms", "peak memory, MB")
    rows = []
    for model, own in costs.items():
        millions = None if own.macs is None else own.macs / 1e6
        values = (own.parameters, millions, own.training_seconds, own.forecast_milliseconds, own.peak_memory_mb)
        texts = [_text(math.nan if value is None else float(value)) for value in values]
        whole = "–" if own.parameters is None else f"{own.parameters:,}"
        rows.append(Row(readable(model), model in references, [(text, "") for text in (whole, *texts[1:])]))
    return Table("What each model costs", "model", columns, rows)


def slider(series: MapSeries) -> Slider:
    """Return one case's maps for the page; sheets are read and embedded."""
    width, height = series.tile
    tiles = [("observed", f"0 0 {width} {height}", f"{width} / {height}")]
    tiles += [
        (readable(name), f"{(k + 1) * width} 0 {width} {2 * height}", f"{width} / {2 * height}")
        for k, name in enumerate(series.models)
    ]
    sheets = [data_address(path) for path in series.sheets]
    size = (width * (1 + len(series.models)), 2 * height)
    return Slider(series.title, series.labels, sheets, data_address(series.scale), size, series.tile, tiles)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted name and text."""
    lines: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            lines |= flat(value, f"{prefix}{key}.")
        else:
            lines[f"{prefix}{key}"] = "none" if value is None else str(value)
    return lines


def _difference(cell: Cell | None) -> tuple[str, str]:
    if cell is None:
        return "", ""
    largest = max((abs(end) for end in (cell.value, cell.low, cell.high) if math.isfinite(end)), default=0.0)
    digits = max(0, 1 - math.floor(math.log10(largest))) if largest > 0 else 0  # two of the largest number's
    value, low, high = (_signed(number, digits) for number in (cell.value, cell.low, cell.high))
    return f"{DIFFERENCES[cell.word]} {value}\n{low} to {high}", cell.word.replace(" ", "-")


def _signed(value: float, digits: int) -> str:
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return (text if float(text) else text[1:]).replace("-", "−")


def _text(value: float) -> str:
    if math.isnan(value):
        return "–"
    text = "0" if value == 0 else f"{value:#.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return text.replace("-", "−")
