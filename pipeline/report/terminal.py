"""The table of a comparison for the terminal."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fieldcast.pipeline.datasets.labels import lead_unit
from fieldcast.pipeline.evaluation.comparison import Comparison, skill
from fieldcast.pipeline.report.style import spread_out
from fieldcast.pipeline.verification.orientation import best_at

WIDTH = 100  # columns of the terminal


def terminal_table(comparison: Comparison) -> Table:
    """Return the table of all models, best values bold: two scores at three leads, guards against blur, MSE skill."""
    metrics, titles = comparison.metrics, comparison.titles
    (rmse, rmse_title), (second, second_title), *more = titles.items()
    leads = list(metrics[next(iter(comparison.fair))][rmse])
    few = [leads[k] for k in spread_out(3, len(leads))]
    guards = [(name, title) for name, title in more if title.startswith(("CSI", "Spectrum"))]
    divisor, unit = lead_unit(leads)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("model", no_wrap=True)
    columns = [(score, title, lead) for score, title in ((rmse, rmse_title), (second, second_title)) for lead in few]
    columns += [(score, title, few[-1]) for score, title in guards]
    for score, title, lead in columns:
        head = _head(title) if (score, title) in guards else title.split(" ")[0]
        table.add_column(f"{head}\n{lead / divisor:g}", justify="right", no_wrap=True)
    for lead in few[-2:]:
        table.add_column(f"vs B\n{lead / divisor:g}", justify="right", no_wrap=True)
    fair = {name: metrics[name] for name in comparison.fair}
    for model, scores in metrics.items():
        cells = [
            _cell(scores.get(score, {}).get(lead, math.nan), model in fair and model in best_at(fair, score, lead))
            for score, _, lead in columns
        ]
        against = skill(metrics, model, comparison.references, rmse)
        cells += [_skill_cell(against.get(lead, math.nan)) for lead in few[-2:]]
        name = model + (" *" if model in comparison.left_out else "")
        table.add_row(Text(name, style="dim" if model in comparison.references else ""), *cells)
    told = "".join(f", {_head(title)}: {_spoken(title)}" for _, title in guards)
    table.caption = (
        f"Lead time in {unit}; {rmse_title}, {second_title}{told}; best values bold.\n"
        "vs B, the best reference there: 1 − MSE / its MSE; below 0 is worse."
        + ("\n* compared on other terms: in no verdict." if comparison.left_out else "")
    )
    return table


def _head(title: str) -> str:
    return "fine" if title.startswith("Spectrum") else "CSI+"


def _spoken(title: str) -> str:
    return f"{title[0].lower()}{title[1:]}, low for a blurred forecast" if title.startswith("Spectrum") else title


def _cell(value: float, best: bool) -> Text:
    return Text(_number(value, ".3f" if abs(value) < 10 else ".4g"), style="bold green" if best else "")


def _skill_cell(value: float) -> Text:
    return Text(_number(value, "+.2f" if value > -10 else "+.0f"))


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)
