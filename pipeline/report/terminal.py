"""The table of a comparison for the terminal."""

from __future__ import annotations

import math

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from fieldcast.pipeline.datasets.labels import lead_unit
from fieldcast.pipeline.evaluation.comparison import Comparison, skill
from fieldcast.pipeline.report.style import spread_out
from fieldcast.pipeline.verification.scores import Score, best_at

WIDTH = 100  # columns of the terminal
GUARDS = {"csi": "CSI+", "spectrum_ratio": "fine"}  # scores with a column against blur, and its head


def terminal_table(comparison: Comparison) -> Table:
    """Return the table of all models, best values bold: two scores at three leads, guards against blur, MSE skill."""
    metrics, (rmse, second, *more) = comparison.metrics, comparison.leading
    leads = list(metrics[next(iter(comparison.comparable))][rmse])
    few = [leads[k] for k in spread_out(3, len(leads))]
    guards = [score for score in more if score.name in GUARDS]
    divisor, unit = lead_unit(leads)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("model", no_wrap=True)
    columns = [(score, score.title().split(" ")[0], lead) for score in (rmse, second) for lead in few]
    columns += [(score, GUARDS[score.name], few[-1]) for score in guards]
    for _, head, lead in columns:
        table.add_column(Text(f"{head}\n{lead / divisor:g}"), justify="right", no_wrap=True)
    for lead in few[-2:]:
        table.add_column(f"vs B\n{lead / divisor:g}", justify="right", no_wrap=True)
    comparable = {name: metrics[name] for name in comparison.comparable}
    for model, scores in metrics.items():
        cells = [
            _cell(
                scores.get(score, {}).get(lead, math.nan),
                best=model in comparable and model in best_at(comparable, score, lead),
            )
            for score, _, lead in columns
        ]
        against = skill(comparison, model, rmse)
        cells += [_skill_cell(against.get(lead, math.nan)) for lead in few[-2:]]
        name = model + (" *" if model in comparison.left_out else "")
        table.add_row(Text(name, style="dim" if model in comparison.references else ""), *cells)
    explained = "".join(f", {GUARDS[score.name]}: {_explanation(score)}" for score in guards)
    caption = (
        f"Lead time in {unit}; {rmse.title()}, {second.title()}{explained}; best values bold.\n"
        "vs B, the best reference there: 1 − MSE / its MSE; below 0 is worse."
        + ("\n* not comparable with the others: in no verdict." if comparison.left_out else "")
    )
    table.caption = Text(caption)  # no markup: units may stand in brackets
    return table


def _explanation(score: Score) -> str:
    title = score.title()
    return title if score.name == "csi" else f"{title[0].lower()}{title[1:]}, low for a blurred forecast"


def _cell(value: float, best: bool) -> Text:
    return Text(_number(value, ".3f" if abs(value) < 10 else ".4g"), style="bold green" if best else "")


def _skill_cell(value: float) -> Text:
    return Text(_number(value, "+.2f" if value > -10 else "+.0f"))


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)
