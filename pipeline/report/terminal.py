"""A comparison in the terminal: a table of scores that fits its width, and the verdict, for each variable."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from fieldcast.pipeline.datasets.labels import lead_unit, readable, readable_units
from fieldcast.pipeline.evaluation.comparison import Comparison, skill
from fieldcast.pipeline.report.content import Content
from fieldcast.pipeline.report.style import spread_out
from fieldcast.pipeline.verification.scores import Score, best_at

WIDTH = 100  # columns where there is no terminal
GUARDS = ("csi", "spectrum_ratio")  # scores with a column against blur
GAP = 2  # columns between cells


@dataclass(frozen=True)
class Column:
    """A column of the table: its head, one part a line, and a cell for each model."""

    head: Sequence[str]
    cells: Mapping[str, Text]

    @property
    def width(self) -> int:
        """Return the columns of the terminal that it takes."""
        return max(*map(len, self.head), *(cell.cell_len for cell in self.cells.values())) + GAP


def terminal() -> Console:
    """Return the terminal that standard output is; `WIDTH` columns where it is none."""
    return Console() if sys.stdout.isatty() else Console(width=WIDTH)


def print_comparisons(console: Console, comparisons: Mapping[str, Comparison], *, verdict: bool = True) -> None:
    """Print the table of each variable and, unless told otherwise, its verdict."""
    for comparison in comparisons.values():
        if len(comparisons) > 1:
            name, units = readable(comparison.variable), readable_units(comparison.units)
            console.rule(Text(f"{name}, {units}", style="bold"), align="left")
        console.print(terminal_table(comparison, console.width))
        if verdict:
            console.print("\n".join(comparison.verdict), highlight=False, markup=False)


def terminal_table(comparison: Comparison, width: int = WIDTH) -> Group:
    """Return a table of all models, in parts where one is wider than `width`.

    Two scores at three leads, guards against blur, MSE skill; the best values and all within chance of them are bold.
    """
    names = {model: model + (" *" if model in comparison.left_out else "") for model in comparison.metrics}
    first = max(len("model"), *map(len, names.values()))
    tables: list[list[Column]] = [[]]
    for column in _columns(comparison):
        if tables[-1] and first + sum(own.width for own in tables[-1]) + column.width > width:
            tables.append([])
        tables[-1].append(column)
    references = comparison.references
    return Group(*(_table(names, references, columns) for columns in tables), Text(_notes(comparison), style="dim"))


def _table(names: Mapping[str, str], references: Sequence[str], columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, GAP - 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("model", no_wrap=True)
    for column in columns:
        table.add_column(Text("\n".join(column.head)), justify="right", no_wrap=True, vertical="bottom")
    for model, name in names.items():
        style = "dim" if model in references else ""
        table.add_row(Text(name, style=style), *(column.cells[model] for column in columns))
    return table


def _columns(comparison: Comparison) -> Iterator[Column]:
    (rmse, second, *more), leads = comparison.leading, _leads(comparison)
    divisor, _ = lead_unit(leads)
    few = [leads[k] for k in spread_out(3, len(leads))]
    chosen = [(score, lead) for score in (rmse, second) for lead in few]
    chosen += [(score, few[-1]) for score in more if score.name in GUARDS]
    leaders = Content(comparison).leaders()
    comparable = {name: comparison.metrics[name] for name in comparison.comparable}
    for score, lead in chosen:
        best = leaders[score][lead] if score in leaders else best_at(comparable, score, lead)
        values = {model: scores.get(score, {}).get(lead, math.nan) for model, scores in comparison.metrics.items()}
        cells = {model: _cell(value, model in best) for model, value in values.items()}
        yield Column([*_head(score), f"{lead / divisor:g}"], cells)
    against = {model: skill(comparison, model, rmse) for model in comparison.metrics}
    for lead in few[-2:]:
        skills = {model: _skill_cell(by_lead.get(lead, math.nan)) for model, by_lead in against.items()}
        yield Column(["MSE", "skill", f"{lead / divisor:g}"], skills)


def _leads(comparison: Comparison) -> list[float]:
    return list(comparison.metrics[next(iter(comparison.comparable))][comparison.leading[0]])


def _head(score: Score) -> list[str]:
    """Return the head of a score's columns in short lines."""
    if score.name == "spectrum_ratio":
        return ["fine", "scales"]
    name, _, event = score.title().partition(" ≥ ")
    level, _, units = event.partition(" ")
    return list(filter(None, [name, f"≥ {level}" if level else "", units]))


def _notes(comparison: Comparison) -> str:
    _, unit = lead_unit(_leads(comparison))
    confidence = comparison.evidence.confidence * 100
    left_out = "\n* not comparable with the others: in no verdict." if comparison.left_out else ""
    return (
        f"Last line of the head: lead time in {unit}. Bold: the best, and all within chance of it ({confidence:g} %).\n"
        "Fine scales: power of the forecast / power of the observed, low where it is blurred.\n"
        f"MSE skill: 1 − MSE / that of the best reference there; below 0 is worse.{left_out}"
    )


def _cell(value: float, best: bool) -> Text:
    return Text(_number(value, ".3f" if abs(value) < 10 else ".4g"), style="bold green" if best else "")


def _skill_cell(value: float) -> Text:
    return Text(_number(value, "+.2f" if value > -10 else "+.0f"))


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)
