"""The report of a comparison: one HTML file that needs no network and no second file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fieldcast.pipeline.datasets.labels import readable
from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.report.maps import MapSeries
from fieldcast.pipeline.report.style import data_address, model_styles
from fieldcast.pipeline.report.tables import (
    Differences,
    Groups,
    Leaders,
    Matrix,
    Table,
    cost_table,
    difference_table,
    group_table,
    matrix_table,
    score_table,
)
from fieldcast.pipeline.verification.scores import TABLE, Score, Scores

OF_DIFFERENCES = (
    "▲ better than the best reference at that lead, ▼ worse, = no certain difference; below it the interval of the "
    "difference. Column heads name the reference."
)
OF_CURVES = (
    "Thick lines: models that learn; thin dashed lines: reference forecasts; thin grey line: a perfect forecast. Δ: "
    "difference from the best reference at each lead, which is the line at 0; bands: intervals of the differences, of "
    "up to four models. Where a band lies on one side of 0, the difference is certain."
)
OF_SCORES = (
    "Bold green: the best value of a column, and all that are within chance of it; of scores without a test all that "
    "are printed alike. Grey names: reference forecasts."
)
OF_MAPS = (
    "Upper map: the field. Lower map: forecast minus observed. Both have one colour scale for all models. Grey: "
    "missing. Which lines are drawn stands below the colours."
)
OF_CASES = "All panels of a case share one colour scale; lines as in the maps."
OF_PAIRS = "▲ the row's model is better than the column's, ▼ worse, = no certain difference; below it the interval."
OF_SPECTRA = "Less power than observed at short wavelengths: a forecast that is too smooth. Thick grey: observed."
OF_RELIABILITY = (
    "On the diagonal, events come as often as the forecast says. Dotted: how often the event came. Below: the share of "
    "forecasts with each probability."
)
OF_RANKS = "Flat is perfect; a valley: too little spread, a hill: too much, a slope: a bias."
OF_COVERAGE = "The thin line is what the interval promises."
OF_PERFORMANCE = "The upper right corner is perfect; above the diagonal events are forecast too often."
OF_VALUE = (
    "What a user saves who can protect against the event, of what perfect forecasts would save: at 0 no more than by "
    "always or never protecting. Members are probabilities, at which each user acts by the own ratio; others say yes or"
    " no."
)
OF_GROUPS = "Bold green: the best value of each line, and all that are printed alike."
OF_COST = "Up and to the left is better. Open circles: reference forecasts."
SECTIONS = ("skill", "spectra", "reliability", "ranks", "coverage", "performance", "value", "cost", "case")


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
class Part:
    """All that the report shows of one variable; `metrics` is `{model: {score: {lead in minutes: value}}}`."""

    title: str  # 'rain rate, mm/h'
    verdict: Sequence[str]
    metrics: Mapping[str, Scores]
    leading: Sequence[Score]  # whose tables come first
    facts: Mapping[str, str]
    pictures: Sequence[Picture]
    leaders: Leaders = field(default_factory=dict)  # of the scores that are tested
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)  # model -> why no verdict speaks of it
    differences: Sequence[Differences] = ()
    matrices: Sequence[Matrix] = ()
    maps: Sequence[MapSeries] = ()
    groups: Sequence[Groups] = ()


@dataclass(frozen=True)
class Page:
    """Everything the report shows: a part for each variable, and what all of them share."""

    parts: Sequence[Part]
    references: Sequence[str]
    settings: Mapping[str, Any]
    project: str = ""
    head: Mapping[str, str] = field(default_factory=dict)  # date, commit, data
    costs: Mapping[str, Costs] = field(default_factory=dict)
    runs: Mapping[str, str] = field(default_factory=dict)  # model -> address of its run, or what finds it


@dataclass(frozen=True)
class Slider:
    """The maps of one case as the page needs them: the sheets as addresses, a view of a sheet for each model."""

    title: str
    labels: Sequence[str]
    sheets: Sequence[str]
    scale: str
    lines: str  # over each tile, and with the bar of the scale
    bar: str
    size: tuple[int, int]  # of a sheet
    tile: tuple[int, int]
    tiles: Sequence[tuple[str, str, str]]  # name, the view's x y width height, its width / height


@dataclass(frozen=True)
class Section:
    """A heading of the report and what stands below it."""

    title: str
    note: str = ""
    pictures: Sequence[Picture] = ()
    layout: str = ""  # of the pictures, a class of the style sheet
    lines: bool = False  # whether models are lines in the pictures, which need a legend
    tables: Sequence[Table] = ()
    kind: str = ""  # of the tables, a class of the style sheet
    folded: Sequence[Table] = ()  # tables that few readers want
    sliders: Sequence[Slider] = ()

    @property
    def content(self) -> bool:
        """Return whether there is anything below the heading."""
        return bool(self.pictures or self.tables or self.sliders)


def render(page: Page) -> str:
    """Return the report as one HTML document; the pictures are read and embedded."""
    environment = Environment(
        loader=PackageLoader("fieldcast.pipeline.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["readable"] = readable
    parts = [(part, sections(part, page.references)) for part in page.parts]
    names = dict.fromkeys(model for part in page.parts for model in part.metrics)
    return environment.get_template("report.html.j2").render(
        project=page.project,
        head=page.head,
        parts=parts,
        sliding=any(section.sliders for _, each in parts for section in each),
        legend=legend(list(names), page.references),
        costs=cost_table(page.costs, page.references),
        devices=sorted({costs.device for costs in page.costs.values() if costs.device}),
        runs={readable(model): (text, text.startswith(("http:", "https:"))) for model, text in page.runs.items()},
        settings=flat(page.settings),
        glossary=TABLE.values(),
    )


def sections(part: Part, references: Sequence[str]) -> list[Section]:
    """Return what the report shows of one variable, in order; sections without content are left out."""
    names, pictures = list(part.metrics), {name: [p for p in part.pictures if p.section == name] for name in SECTIONS}
    others = [score for score in next(iter(part.metrics.values())) if score not in part.leading]
    leading, more = (
        [score_table(part.metrics, score, part.leaders, references, part.left_out) for score in scores]
        for scores in (part.leading, others)
    )
    differences = [difference_table(each, references) for each in part.differences]
    matrices = [matrix_table(matrix, names, references) for matrix in part.matrices]
    groups = [group_table(each, names) for each in part.groups]
    sliders = [slider(series) for series in part.maps]
    every = [
        Section("Differences from the best reference", OF_DIFFERENCES, tables=differences, kind="pairs"),
        Section("Scores against lead time", OF_CURVES, pictures["skill"], "grid", lines=True),
        Section("Scores at each lead time", OF_SCORES, tables=leading, folded=more),
        Section("Maps", OF_MAPS, sliders=sliders),
        Section("Cases", OF_CASES, pictures["case"], "wide"),
        Section("Differences between all pairs", OF_PAIRS, tables=matrices, kind="pairs"),
        Section("Spectra", OF_SPECTRA, pictures["spectra"], "grid pair", lines=True),
        Section("Reliability", OF_RELIABILITY, pictures["reliability"], "grid", lines=True),
        Section("Ranks of the observed among the members", OF_RANKS, pictures["ranks"], "grid alone"),
        Section("Coverage of the 90 % interval", OF_COVERAGE, pictures["coverage"], "grid", lines=True),
        Section("Performance", OF_PERFORMANCE, pictures["performance"], "grid large"),
        Section("Economic value", OF_VALUE, pictures["value"], "grid", lines=True),
        Section("Scores by group", OF_GROUPS, tables=groups, kind="groups"),
        Section("Skill and the time of a forecast", OF_COST, pictures["cost"], "grid large"),
    ]
    return [section for section in every if section.content]


def legend(names: Sequence[str], references: Sequence[str]) -> list[tuple[str, str, float, str]]:
    """Return how each model's line looks, as SVG says it: name, stroke, its width and its dashes."""
    dashes = {"-": "", "-.": "9 3 2 3", ":": "2 3"}
    lines = []
    for name, style in model_styles(names, references).items():
        line = style["linestyle"]
        dash = dashes[line] if isinstance(line, str) else " ".join(f"{2 * length:g}" for length in line[1])
        lines.append((readable(name), style["color"], style["linewidth"] * 1.2, dash))
    return lines


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
    scale, lines, bar = (data_address(path) for path in (series.scale, series.lines, series.bar))
    return Slider(series.title, series.labels, sheets, scale, lines, bar, size, series.tile, tiles)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted name and text."""
    lines: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            lines |= flat(value, f"{prefix}{key}.")
        else:
            lines[f"{prefix}{key}"] = "none" if value is None else str(value)
    return lines
