"""The files of a comparison: its report in one page, and every picture in it as a file."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fieldcast.pipeline.datasets.labels import readable, readable_units
from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.comparison import (
    Comparison,
    facts,
    joined_metrics,
    references_of,
    write_scores,
)
from fieldcast.pipeline.report import maps
from fieldcast.pipeline.report import plots as diagrams
from fieldcast.pipeline.report.content import GAIN, Content
from fieldcast.pipeline.report.html import Page, Part, Picture, render
from fieldcast.pipeline.report.maps import Case
from fieldcast.pipeline.report.plots import Gain, Panel
from fieldcast.pipeline.report.style import (
    Styles,
    model_styles,
    pixels,
    spread_out,
    stacked,
    write_gif,
    write_pixels,
    write_png,
)


@dataclass(frozen=True)
class About:
    """What the head of a report says: the project's name, and labels with texts such as the date and the commit."""

    project: str = ""
    head: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ShownCase:
    """A case with its caption and the beginning of its files' names; `slider` asks for maps of all leads."""

    case: Case
    caption: str
    stem: str
    slider: bool = False


@dataclass(frozen=True)
class Shown:
    """What the fields of a variable show beside its scores: cases, and facts as label and text."""

    cases: Sequence[ShownCase] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


REPORT, METRICS, FIGURES = "report.html", "metrics.json", "figures"
OVERVIEW = ("skill.png", "case.png")  # which `dvc plots` shows
ALL_SCORES = "scores.json"  # of which `metrics.json` has the headlines


def check_folder(folder: Path) -> None:
    """Raise `InputError` where `folder` holds anything but an earlier comparison, which would be replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, expected a folder for the comparison: choose another")
    others = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    others = [name for name in others if name not in (REPORT, METRICS, ALL_SCORES, FIGURES)]
    if others:
        raise InputError(f"{folder} holds {others[0]}, expected a new folder or an earlier comparison: choose another")


def headlines(comparison: Comparison) -> Comparison:
    """Return the comparison with some twenty scores a model: those that every summary begins with, at three leads."""
    leads = list(comparison.metrics[next(iter(comparison.comparable))][comparison.leading[0]])
    few = [leads[k] for k in spread_out(3, len(leads))]
    metrics = {
        model: {
            score: {lead: scores[score].get(lead, math.nan) for lead in few}
            for score in comparison.leading
            if score in scores
        }
        for model, scores in comparison.metrics.items()
    }
    return replace(comparison, metrics=metrics)


def write_report(
    comparisons: Mapping[str, Comparison],
    folder: Path,
    settings: Mapping[str, Any],
    shown: Mapping[str, Shown] | None = None,
    about: About | None = None,
) -> None:
    """Write `metrics.json`, `scores.json`, `report.html` and `figures/` into `folder`, in place of earlier ones.

    `comparisons` and what else is `shown` of them are by variable; without cases (no fields at hand) there are no maps.
    Pictures of several variables have a folder each in `figures/`, beside those of `OVERVIEW`, of all variables.
    """
    about = about or About()
    pictures = folder / FIGURES
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    write_scores(joined_metrics(comparisons), folder / ALL_SCORES)
    short = {field: headlines(comparison) for field, comparison in comparisons.items()}
    write_scores(joined_metrics(short), folder / METRICS)
    contents = {field: Content(comparison) for field, comparison in comparisons.items()}
    shown = shown or {}
    sliders = sum(case.slider for each in shown.values() for case in each.cases)
    room = maps.SHEET_BYTES // max(1, sliders)
    parts = [
        _part(content, _folder_of(field, contents, pictures), shown.get(field, Shown()), room)
        for field, content in contents.items()
    ]
    for name in OVERVIEW if len(contents) > 1 else ():
        if own := sorted(pictures.glob(f"*/{name}")):
            write_pixels(stacked(own), pictures / name)
    entries = {name: entry for comparison in comparisons.values() for name, entry in comparison.entries.items()}
    page = Page(
        parts,
        references_of(entries),
        settings,
        about.project,
        about.head,
        costs={name: entry.costs for name, entry in entries.items()},
        runs={name: entry.run for name, entry in entries.items() if entry.run},
    )
    (folder / REPORT).write_text(render(page), encoding="utf-8")


def _folder_of(field: str, fields: Iterable[str], pictures: Path) -> Path:
    """Return the folder of a variable's pictures: with several each has its own, numbered in their order."""
    names = list(fields)
    if len(names) == 1:
        return pictures
    own = pictures / f"{names.index(field) + 1}_{_slug(field)}"
    own.mkdir()
    return own


def _part(content: Content, folder: Path, shown: Shown, sheet_bytes: int) -> Part:
    """Draw a variable's pictures into `folder`; return what the report shows of it."""
    comparison = content.comparison
    drawn = [*_curves(content, comparison, folder), *_diagrams(content, comparison, folder)]
    drawn += list(_cases(shown.cases, folder))
    return Part(
        f"{readable(comparison.variable)}, {readable_units(comparison.units)}",
        comparison.verdict,
        comparison.metrics,
        comparison.leading,
        {**facts(comparison), **shown.facts},
        drawn,
        content.leaders(),
        comparison.left_out,
        content.differences(),
        content.matrices(),
        [
            maps.write_map_series(one.case, folder, one.stem, one.caption, sheet_bytes)
            for one in shown.cases
            if one.slider
        ],
        content.groups(),
    )


def _curves(content: Content, comparison: Comparison, folder: Path) -> Iterator[Picture]:
    styles = _styles(comparison)
    drawn = {panel.title: pixels(FigureCanvasAgg(_curve_figure(panel, styles))) for panel in content.panels()}
    leading = [drawn[panel.title] for panel in content.leading_panels()]
    confidence = f"{comparison.evidence.confidence * 100:g} % intervals of the differences"
    count = comparison.sums.sizes[INIT_TIME]
    note = (
        f"{readable(comparison.variable)}: {count} init times, same cells for all models; dashed: reference forecasts; "
        f"Δ: difference from the best reference at each lead, the line at 0; bands: {confidence}"
    )
    write_png(diagrams.skill_figure(leading, list(content.sums), styles, note), folder / "skill.png")
    for title, picture in drawn.items():
        path = folder / f"skill_{_slug(title.replace(GAIN, 'difference '))}.png"
        write_pixels(picture, path)
        yield Picture(path, title, "skill")
    coverage = content.coverage()
    if coverage is not None:
        yield _drawn(diagrams.panel_figure(coverage, styles), folder / "coverage.png", coverage.title, "coverage")


def _curve_figure(panel: Panel | Gain, styles: Styles) -> Figure:
    return diagrams.gain_figure(panel, styles) if isinstance(panel, Gain) else diagrams.panel_figure(panel, styles)


def _diagrams(content: Content, comparison: Comparison, folder: Path) -> Iterator[Picture]:
    styles = _styles(comparison)
    if spectra := content.spectra():
        caption = "Power by wavelength: a forecast below the observed line has lost detail of that size."
        yield _drawn(diagrams.spectra_figure(spectra, styles), folder / "spectra.png", caption, "spectra")
    for reliability in content.reliability():
        path = folder / f"reliability_{_slug(reliability.title)}.png"
        caption = f"Reliability of the probability of {reliability.title}, all leads."
        yield _drawn(diagrams.reliability_figure(reliability, styles), path, caption, "reliability")
    for value in content.economic_value():
        path = folder / f"value_{_slug(value.title)}.png"
        caption = f"Economic value of forecasts of {value.title}, all leads."
        yield _drawn(diagrams.value_figure(value, styles), path, caption, "value")
    for model, counts in content.ranks().items():
        caption = "Rank of the observed value among the members, all leads; flat is right."
        path = folder / f"ranks_{model}.png"
        yield _drawn(diagrams.rank_figure(model, counts, styles), path, caption, "ranks")
    if (performance := content.performance()) is not None:
        figure = diagrams.performance_figure(performance, styles)
        yield _drawn(figure, folder / "performance.png", f"Performance diagram, {performance.title}.", "performance")
    if (priced := content.skill_by_cost()) is not None:
        figure = diagrams.cost_figure(*priced, styles)
        yield _drawn(figure, folder / "cost.png", "Skill against the time of one forecast.", "cost")


def _cases(cases: Sequence[ShownCase], folder: Path) -> Iterator[Picture]:
    for k, shown in enumerate(cases):
        figure = maps.case_figure(shown.case)
        yield _drawn(figure, folder / f"{shown.stem}.png", shown.caption, "case")
        if k == 0:
            write_gif(maps.case_animation(shown.case), folder / f"{shown.stem}.gif")


def _styles(comparison: Comparison) -> Styles:
    return model_styles(list(comparison.metrics), comparison.references)


def _drawn(figure: Figure, path: Path, caption: str, section: str) -> Picture:
    write_png(figure, path)
    return Picture(path, caption, section)


def _slug(title: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "_", title.lower()).strip("_")
