"""The report of a comparison: one HTML file that needs no network, no script and no second file."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.figures import lead_unit, readable
from pipeline.scores.ranking import best_at
from pipeline.scores.sums import Scores

MEDIA = {".png": "image/png", ".gif": "image/gif"}


@dataclass(frozen=True)
class Picture:
    """An image file, what it shows, and the section it belongs to: 'skill', 'case' or 'animation'."""

    path: Path
    caption: str
    section: str

    def source(self) -> str:
        """Return the file's content as a `data:` address."""
        return f"data:{MEDIA[self.path.suffix]};base64,{base64.b64encode(self.path.read_bytes()).decode()}"


@dataclass(frozen=True)
class Report:
    """Everything the report shows; `metrics` is `{model: {score: {lead in minutes: value}}}`."""

    verdict: Sequence[str]
    metrics: Mapping[str, Scores]
    titles: Mapping[str, str]  # score -> title of the tables that lead
    references: Sequence[str]
    facts: Mapping[str, str]
    pictures: Sequence[Picture]
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A model's line in a table: (text, best) for each lead."""

    model: str
    reference: bool
    cells: Sequence[tuple[str, bool]]


@dataclass(frozen=True)
class ScoreTable:
    """One score of all models at all leads."""

    title: str
    leads: Sequence[str]
    unit: str
    rows: Sequence[Row]


@dataclass(frozen=True)
class Term:
    """A score in the glossary."""

    name: str
    formula: str
    unit: str
    perfect: str
    averaging: str


POOLED = "summed over all valid cells and init times first, then divided"
GLOSSARY = (
    Term("RMSE", "√( Σ(f − o)² / n )", "the field's", "0", POOLED + ", then the root"),
    Term("MAE", "Σ|f − o| / n", "the field's", "0", POOLED),
    Term("Mean error", "Σ(f − o) / n; above 0: too high", "the field's", "0", POOLED),
    Term("MSE per frame", "Σ(f − o)² over a frame's cells", "the field's, squared", "0", "mean over frames"),
    Term("MSE skill", "1 − MSE / MSE of the reference; below 0: worse than it", "none", "1", "from the pooled MSE"),
    Term("CSI", "hits / (hits + misses + false alarms)", "none", "1", POOLED),
    Term("POD", "hits / (hits + misses)", "none", "1", POOLED),
    Term("FAR", "false alarms / (hits + false alarms)", "none", "0", POOLED),
    Term("Frequency bias", "(hits + false alarms) / (hits + misses)", "none", "1", POOLED),
    Term("FSS", "1 − Σ(pf − po)² / Σ(pf² + po²)", "none", "1", "summed over all windows and init times first"),
)


def render(report: Report) -> str:
    """Return the report as one HTML document; the pictures are read and embedded."""
    environment = Environment(
        loader=PackageLoader("pipeline", ""), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    inits = report.facts.get("Init times", "")
    leading = [score_table(report.metrics, name, title, report.references) for name, title in report.titles.items()]
    others = [
        score_table(report.metrics, name, name, report.references)
        for name in next(iter(report.metrics.values()))
        if name not in report.titles
    ]
    return environment.get_template("report.html.j2").render(
        verdict=[*report.verdict, no_test(inits.split(",")[0])],
        leading=leading,
        others=others,
        facts=report.facts,
        settings=flat(report.settings),
        glossary=GLOSSARY,
        pictures={name: [p for p in report.pictures if p.section == name] for name in ("skill", "case", "animation")},
    )


def no_test(inits: int | str) -> str:
    """Return the sentence that says what the verdict is not."""
    return f"These are differences of values over {inits} init times; no test of significance is made here."


def score_table(metrics: Mapping[str, Scores], score: str, title: str, references: Sequence[str]) -> ScoreTable:
    """Return one score of all models at all leads, the best values marked; a value that is undefined is a dash."""
    leads = list(next(iter(metrics.values()))[score])
    divisor, unit = lead_unit(leads)
    best = {lead: best_at(metrics, score, lead) for lead in leads}
    rows = [
        Row(readable(model), model in references, [(_text(own[score][lead]), model in best[lead]) for lead in leads])
        for model, own in metrics.items()
    ]
    return ScoreTable(title, [f"{lead / divisor:g}" for lead in leads], unit, rows)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted name and text."""
    lines: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            lines |= flat(value, f"{prefix}{key}.")
        else:
            lines[f"{prefix}{key}"] = "none" if value is None else str(value)
    return lines


def _text(value: float) -> str:
    if math.isnan(value):
        return "–"
    return f"{value:#.3g}" if abs(value) < 100 else f"{value:,.0f}"
