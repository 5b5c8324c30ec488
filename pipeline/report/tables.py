"""Tables of the report: scores, differences, groups and costs as text, with what is marked in them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from fieldcast.pipeline.datasets.labels import lead_unit, readable
from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.verification.scores import Score, Scores, badness

SIGNS = {"better": "▲", "worse": "▼", "no difference": "="}
BEST = "best"  # class of a cell
Leaders = Mapping[Score, Mapping[float, Sequence[str]]]  # models with the best value, and within chance of it, by lead


@dataclass(frozen=True)
class Cell:
    """Difference of a model from another: a key of `SIGNS`, the difference of the scores and its interval."""

    word: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Differences:
    """Differences of each model from the best reference at each lead in one score; a reference's own are 0."""

    title: str
    models: Mapping[str, Mapping[float, Cell]]  # model -> lead in minutes
    best: Mapping[float, str]  # the reference at each lead


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


def score_table(
    metrics: Mapping[str, Scores], score: Score, leaders: Leaders, references: Sequence[str], left_out: Iterable[str]
) -> Table:
    """Return one score of all models at all leads; a value that is undefined is a dash.

    Marked are the `leaders`; in a score without a test the values that are printed as the best one is.
    """
    leads = list(next(iter(metrics.values()))[score])
    divisor, unit = lead_unit(leads)
    comparable = [model for model in metrics if model not in left_out] or list(metrics)
    best = {lead: _best(score, {model: metrics[model][score][lead] for model in comparable}) for lead in leads}
    marked = leaders.get(score, best)
    rows = [
        Row(
            readable(model),
            model in references,
            [(number(own[score][lead]), BEST if model in marked[lead] else "") for lead in leads],
        )
        for model, own in metrics.items()
    ]
    return Table(f"{score.title()}, lead time in {unit}", "model", [f"{lead / divisor:g}" for lead in leads], rows)


def difference_table(differences: Differences, references: Sequence[str]) -> Table:
    """Return differences from the best reference, leads as columns under that reference's name."""
    divisor, unit = lead_unit(list(differences.best))
    rows = [
        Row(
            readable(model),
            model in references,
            [_against(model, differences.best[lead], cell) for lead, cell in cells.items()],
        )
        for model, cells in differences.models.items()
    ]
    columns = [f"{lead / divisor:g}\n{readable(name)}" for lead, name in differences.best.items()]
    return Table(f"{differences.title}, lead time in {unit} and its best reference", "model", columns, rows)


def matrix_table(matrix: Matrix, names: Sequence[str], references: Sequence[str]) -> Table:
    """Return pairs of models as a table: a sign, the difference and its interval; empty where there is none."""
    there = [name for name in names if any(name in pair for pair in matrix.cells)]
    divisor, unit = lead_unit([matrix.lead])
    rows = [
        Row(readable(row), row in references, [_difference(matrix.cells.get((row, name))) for name in there])
        for row in there
    ]
    title = f"{matrix.title}, {matrix.lead / divisor:g} {unit}: row less column"
    return Table(title, "", [readable(name) for name in there], rows)


def group_table(groups: Groups, names: Sequence[str]) -> Table:
    """Return one score as a table of groups by models, the values marked that are printed as each group's best is."""
    there = [name for name in names if any(name in values for values in groups.values.values())]
    rows = []
    for group, values in groups.values.items():
        own = {name: values.get(name, math.nan) for name in there}
        best = _best(groups.score, own)
        rows.append(Row(group, False, [(number(own[name]), BEST if name in best else "") for name in there]))
    return Table(groups.title, "", [readable(name) for name in there], rows)


def cost_table(costs: Mapping[str, Costs], references: Sequence[str]) -> Table:
    """Return what each model costs; a dash where there is none or it was not measured."""
    columns = ("weights", "multiply-adds, millions", "training, s", "one forecast, ms", "peak memory, MB")
    rows = []
    for model, own in costs.items():
        millions = None if own.macs is None else own.macs / 1e6
        values = (own.parameters, millions, own.training_seconds, own.forecast_milliseconds, own.peak_memory_mb)
        texts = [number(math.nan if value is None else float(value)) for value in values]
        whole = "–" if own.parameters is None else f"{own.parameters:,}"
        rows.append(Row(readable(model), model in references, [(text, "") for text in (whole, *texts[1:])]))
    return Table("What each model costs", "model", columns, rows)


def number(value: float) -> str:
    """Return a value to three digits as people write it; a dash for NaN."""
    if math.isnan(value):
        return "–"
    text = "0" if value == 0 else f"{value:#.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return text.replace("-", "−")


def _best(score: Score, values: Mapping[str, float]) -> list[str]:
    """Return the models whose value is printed as the best one is; none where all are undefined."""
    ranks = {name: badness(score, value) for name, value in values.items()}
    least = min(ranks, key=lambda name: ranks[name], default="")
    if not least or not math.isfinite(ranks[least]):
        return []
    return [name for name, value in values.items() if number(value) == number(values[least])]


def _against(model: str, reference: str, cell: Cell) -> tuple[str, str]:
    return ("reference", "no-difference") if model == reference else _difference(cell)


def _difference(cell: Cell | None) -> tuple[str, str]:
    if cell is None:
        return "", ""
    largest = max((abs(end) for end in (cell.value, cell.low, cell.high) if math.isfinite(end)), default=0.0)
    digits = max(0, 1 - math.floor(math.log10(largest))) if largest > 0 else 0  # two of the largest number's
    value, low, high = (_signed(end, digits) for end in (cell.value, cell.low, cell.high))
    return f"{SIGNS[cell.word]} {value}\n{low} to {high}", cell.word.replace(" ", "-")


def _signed(value: float, digits: int) -> str:
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return (text if float(text) else text[1:]).replace("-", "−")
