"""Compare all models: one table, one verdict, pictures and a report, from the sums that `verify` kept."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import xarray as xr
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from models import REFERENCES
from pipeline import figures, report
from pipeline.figures import Panel, lead_unit, readable, readable_units
from pipeline.paths import COMPARISON, FORECASTS, OBSERVATIONS, SCORES
from pipeline.schema import INIT_TIME, LEAD_TIME, RAIN_RATE_UNITS, InputError, score_key
from pipeline.scores.continuous import mse_skill
from pipeline.scores.ranking import best_at, runs
from pipeline.scores.sums import (
    SCALE,
    THRESHOLD,
    VALID_CRC,
    Scores,
    field_sums,
    fields_of,
    read_sums,
    scores_of,
    units_of,
)

DIGITS = 6  # significant digits in metrics.json; ties are ties at this precision
CASES = 2
TABLE_WIDTH = 100  # columns of the terminal

Metrics = dict[str, Scores]


def compare(sums: Mapping[str, xr.Dataset]) -> Metrics:
    """Return `{model: {score: {lead in minutes: value}}}`, rounded to `DIGITS` significant digits.

    Raises `InputError` when the models were not scored on the same init times, leads, thresholds and cells.
    """
    check_comparable(sums)
    return {
        model: {
            name: {lead: float(f"{value:.{DIGITS}g}") for lead, value in by_lead.items()}
            for name, by_lead in scores_of(own).items()
        }
        for model, own in sums.items()
    }


def check_comparable(sums: Mapping[str, xr.Dataset]) -> None:
    """Raise `InputError` that names the first model whose init times, leads, thresholds or valid cells differ."""
    if not sums:
        raise InputError("data/scores: no model to compare, expected the names in kinds")
    (first, reference), *others = sums.items()
    advice = "forecast and verify all models again from one params.yaml"
    for name, own in others:
        for coordinate in sorted(str(key) for key in {*reference.coords, *own.coords}):
            here, there = own.coords.get(coordinate), reference.coords.get(coordinate)
            if here is None or there is None or not here.equals(there):
                raise InputError(f"data/scores: '{coordinate}' of {name} differs from that of {first}; {advice}")
        for field in fields_of(reference):
            for kept in ("n", VALID_CRC):
                variable = f"{field}.{kept}"
                if variable in own and own[variable].equals(reference[variable]):
                    continue
                raise InputError(f"data/scores: {name} was scored on other cells of '{field}' than {first}; {advice}")


def write_metrics(metrics: Metrics, path: Path) -> None:
    """Write `metrics` as JSON: leads as text in ascending order, all else sorted, NaN as null."""
    content = {
        model: {
            name: {str(lead): None if math.isnan(by_lead[lead]) else by_lead[lead] for lead in sorted(by_lead)}
            for name, by_lead in sorted(scores.items())
        }
        for model, scores in sorted(metrics.items())
    }
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def key_scores(sums: xr.Dataset) -> dict[str, str]:
    """Return the scores that lead every summary, with their titles: RMSE, and CSI and FSS in the middle or MAE.

    They are those of the first field, at its middle threshold and the middle neighbourhood.
    """
    field = fields_of(sums)[0]
    prefix, own, units = _prefix(sums, field), field_sums(sums, field), units_of(sums, field)
    titles = {f"{prefix}rmse": "RMSE"}
    if THRESHOLD not in own.coords:
        return titles | {f"{prefix}mae": "MAE"}
    threshold, spoken = float(_middle(own[THRESHOLD].values)), readable_units(units)
    titles[prefix + score_key("csi", threshold, units)] = f"CSI ≥ {threshold:g} {spoken}"
    if SCALE in own.coords:
        scale = float(_middle(own[SCALE].values))
        titles[prefix + score_key("fss", threshold, units, scale)] = f"FSS ≥ {threshold:g} {spoken}, {scale:g} km"
    return titles


def skill(metrics: Metrics, model: str, references: Sequence[str], rmse: str) -> dict[int, float]:
    """Return `model`'s MSE skill at each lead against the best of `references` there; NaN where there is none."""
    against = [metrics[name][rmse] for name in references if name in metrics]
    values = {}
    for lead, own in metrics[model][rmse].items():
        best = min((by_lead[lead] for by_lead in against if not math.isnan(by_lead[lead])), default=math.nan)
        values[lead] = float(mse_skill(np.asarray(own**2), np.asarray(best**2)))
    return values


def verdict(metrics: Metrics, titles: Mapping[str, str], references: Sequence[str] = REFERENCES) -> list[str]:
    """Return sentences on which model has the best values where; they speak of values alone, not of significance."""
    sentences = [_best_sentence(metrics, score, title) for score, title in titles.items()]
    rmse = next(iter(titles))
    present = [name for name in references if name in metrics]
    for model in metrics:
        if model not in present and present:
            sentences.append(_against_references(metrics, model, present, rmse))
    return sentences


def terminal_table(metrics: Metrics, titles: Mapping[str, str], references: Sequence[str] = REFERENCES) -> Table:
    """Return the table for the terminal, best values bold: two scores at three leads, MSE skill at two."""
    (rmse, rmse_title), (second, second_title), *_ = titles.items()
    leads = list(next(iter(metrics.values()))[rmse])
    few = [leads[k] for k in figures.spread_out(3, len(leads))]
    divisor, unit = lead_unit(leads)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), caption_justify="left")
    table.add_column("model", no_wrap=True)
    columns = [(score, title, lead) for score, title in ((rmse, rmse_title), (second, second_title)) for lead in few]
    for _, title, lead in columns:
        table.add_column(f"{title.split(' ')[0]}\n{lead / divisor:g}", justify="right", no_wrap=True)
    baselines = {"vs P": ["persistence"], "vs B": list(references)}
    for name in baselines:
        for lead in few[-2:]:
            table.add_column(f"{name}\n{lead / divisor:g}", justify="right", no_wrap=True)
    for model, scores in metrics.items():
        cells = [_cell(scores[score][lead], model in best_at(metrics, score, lead)) for score, _, lead in columns]
        skills = [skill(metrics, model, names, rmse) for names in baselines.values()]
        cells += [_skill_cell(values[lead]) for values in skills for lead in few[-2:]]
        table.add_row(Text(model, style="dim" if model in references else ""), *cells)
    table.caption = (
        f"Lead time in {unit}; {rmse_title}, {second_title}, best values bold.\n"
        "vs P, persistence, and B, the best reference there: 1 − MSE / its MSE; below 0 is worse."
    )
    return table


def skill_panels(metrics: Metrics, sums: xr.Dataset) -> list[Panel]:
    """Return the small pictures of the first field: errors and skill, then CSI, then FSS for each threshold."""
    field = fields_of(sums)[0]
    prefix, own, units = _prefix(sums, field), field_sums(sums, field), units_of(sums, field)
    spoken = readable_units(units)

    def values(score: str) -> dict[str, dict[int, float]]:
        return {model: scores[prefix + score] for model, scores in metrics.items()}

    panels = [Panel("RMSE", spoken, values("rmse")), Panel("MAE", spoken, values("mae"))]
    panels.append(Panel("Mean error", spoken, values("mean_error"), perfect=0.0))
    if "persistence" in metrics:
        skills = {model: skill(metrics, model, ["persistence"], f"{prefix}rmse") for model in metrics}
        panels.append(Panel("MSE skill against persistence", "", skills, perfect=0.0, limits=(-1, 1)))
    thresholds: list[float] = own[THRESHOLD].values.tolist() if THRESHOLD in own.coords else []
    for threshold in thresholds:
        title = f"CSI ≥ {threshold:g} {spoken}"
        panels.append(Panel(title, "", values(score_key("csi", threshold, units)), limits=(0, 1)))
    for threshold in thresholds if SCALE in own.coords else []:
        scale = float(_middle(own[SCALE].values))
        title = f"FSS ≥ {threshold:g} {spoken}, {scale:g} km"
        panels.append(Panel(title, "", values(score_key("fss", threshold, units, scale)), limits=(0, 1)))
    return panels


def eventful(sums: xr.Dataset, count: int = CASES) -> list[np.datetime64]:
    """Return the init times with most observed events, at least a horizon apart, the most eventful first.

    For rain the measure is the observed share of cells at or above the lowest threshold, else (or without a threshold)
    the observed variance over cells and leads. Forecasts play no part.
    """
    field = fields_of(sums)[0]
    own = field_sums(sums, field)
    n = own["n"].sum(LEAD_TIME)
    n = n.where(n > 0)
    if THRESHOLD in own.coords and units_of(sums, field) == RAIN_RATE_UNITS:
        activity = (own["hits"] + own["misses"]).isel({THRESHOLD: 0}).sum(LEAD_TIME) / n
    else:
        activity = own["observed_squared"].sum(LEAD_TIME) / n - (own["observed"].sum(LEAD_TIME) / n) ** 2
    order = activity[INIT_TIME].values[np.argsort(-activity.fillna(-np.inf).values, kind="stable")]
    horizon = sums[LEAD_TIME].values.max()
    chosen: list[np.datetime64] = []
    for init in order:
        if len(chosen) < count and all(abs(init - other) >= horizon for other in chosen):
            chosen.append(init)
    return chosen


def facts(sums: xr.Dataset) -> dict[str, str]:
    """Return what the comparison rests on, as label and text: how many init times, which period, how many cells."""
    inits, field = sums[INIT_TIME].values, fields_of(sums)[0]
    leads = np.asarray(sums[LEAD_TIME].values / np.timedelta64(1, "m"), int).tolist()
    divisor, unit = lead_unit(leads)
    n = sums[f"{field}.n"]
    return {
        "Field": f"{readable(field)}, {readable_units(units_of(sums, field))}",
        "Init times": f"{inits.size}, from {_minute(inits.min())} to {_minute(inits.max())} UTC",
        "Lead times": f"{len(leads)}, from {leads[0] / divisor:g} to {leads[-1] / divisor:g} {unit}",
        "Valid cells": f"{int(n.sum()):,} in all, {float(n.mean()):,.0f} a frame; the same for every model",
    }


def _best_sentence(metrics: Metrics, score: str, title: str) -> str:
    leads = list(next(iter(metrics.values()))[score])
    winners = {lead: best_at(metrics, score, lead) for lead in leads}
    ranges = {model: runs({lead: model in winners[lead] for lead in leads}) for model in metrics}
    won = {model: sum(model in names for names in winners.values()) for model in metrics}
    order = sorted((model for model in metrics if won[model]), key=lambda model: -won[model])
    if not order:
        return f"{title} is undefined at every lead: no such event."
    kind = "lowest" if title.split(" ")[0] in ("RMSE", "MAE") else "highest"
    first, *rest = (f"{readable(model)} {{}}{_spans(ranges[model], leads)}" for model in order)
    sentence = "; ".join([first.format(f"has the {kind} {title} "), *(text.format("") for text in rest)])
    tied = any(len(names) > 1 for names in winners.values())
    return sentence + (" (models named twice for one lead are equal to six digits)." if tied else ".")


def _against_references(metrics: Metrics, model: str, references: Sequence[str], rmse: str) -> str:
    own = metrics[model][rmse]
    leads = list(own)
    parts = []
    against = {"persistence": ["persistence"]} if "persistence" in references else {}
    for name, group in {**against, "every reference": list(references)}.items():
        better = {lead: value > 0 for lead, value in skill(metrics, model, group, rmse).items()}
        where = "at no lead" if not any(better.values()) else _spans(runs(better), leads)
        parts.append(f"{name} {'at every lead' if all(better.values()) else where}")
    return f"{readable(model)} has a lower RMSE than {' and than '.join(parts)}."


def _spans(ranges: Sequence[tuple[int, int]], leads: Sequence[int]) -> str:
    divisor, unit = lead_unit(leads)
    if len(ranges) == 1 and ranges[0][0] < ranges[0][1]:
        return f"from {ranges[0][0] / divisor:g} to {ranges[0][1] / divisor:g} {unit}"
    texts = [f"{a / divisor:g}" if a == b else f"{a / divisor:g}–{b / divisor:g}" for a, b in ranges]
    return f"at {' and '.join(filter(None, [', '.join(texts[:-1]), texts[-1]]))} {unit}"


def _prefix(sums: xr.Dataset, field: str) -> str:
    return f"{field}/" if len(fields_of(sums)) > 1 else ""


def _middle(values: np.ndarray) -> float:
    return float(values[(len(values) - 1) // 2])


def _minute(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]")).replace("T", " ")


def _cell(value: float, best: bool) -> Text:
    return Text(_number(value, ".3f" if abs(value) < 10 else ".4g"), style="bold green" if best else "")


def _skill_cell(value: float) -> Text:
    return Text(_number(value, "+.2f" if value > -10 else "+.0f"))


def _number(value: float, form: str) -> str:
    return "–" if math.isnan(value) else format(value, form)


def _cases(sums: xr.Dataset, names: Sequence[str]) -> list[figures.Case]:
    from pipeline import store

    field = fields_of(sums)[0]
    observed = store.open_observations(OBSERVATIONS)[field]
    forecasts = {name: store.open_forecasts(FORECASTS / f"{name}.zarr")[field] for name in names}
    return [figures.case_of(observed, forecasts, init) for init in eventful(sums)]


def write_pictures(
    folder: Path, metrics: Metrics, sums: xr.Dataset, cases: Sequence[figures.Case]
) -> list[report.Picture]:
    """Write `skill.png`, `case.png`, `case.gif` and a `case_<k>.png` for further cases; return them with captions."""
    note = f"{sums.sizes[INIT_TIME]} init times, same cells for all models; dashed: reference forecasts"
    skill_figure = figures.skill_figure(skill_panels(metrics, sums), REFERENCES, note)
    figures.write_png(skill_figure, folder / "skill.png")
    pictures = [report.Picture(folder / "skill.png", f"Scores against lead time. {note}.", "skill")]
    for k, case in enumerate(cases):
        path = folder / ("case.png" if k == 0 else f"case_{k + 1}.png")
        figures.write_png(figures.case_figure(case), path)
        rank = "The most eventful init time" if k == 0 else f"Number {k + 1} in observed activity"
        pictures.append(report.Picture(path, f"{rank}: {_minute(case.init_time)} UTC, chosen by observations.", "case"))
        if k == 0:
            figures.write_gif(figures.case_animation(case), folder / "case.gif")
            pictures.append(report.Picture(folder / "case.gif", "The same case in motion.", "animation"))
    return pictures


def main() -> None:
    """Compare all models in `params.yaml` and write `data/comparison/`."""
    from pipeline import config, tracking  # the tracker is slow to import and the functions above do without

    params = config.load()
    sums = {name: read_sums(SCORES / f"{name}.nc") for name in params.kinds}
    metrics = compare(sums)
    any_sums = next(iter(sums.values()))
    titles = key_scores(any_sums)
    folder = COMPARISON
    folder.mkdir(parents=True, exist_ok=True)
    write_metrics(metrics, folder / "metrics.json")
    cases = _cases(any_sums, list(sums))
    (folder / "figures").mkdir(exist_ok=True)
    pictures = write_pictures(folder / "figures", metrics, any_sums, cases)
    sentences = verdict(metrics, titles)
    content = report.Report(
        sentences, metrics, titles, REFERENCES, facts(any_sums), pictures, params.model_dump(mode="json")
    )
    (folder / "report.html").write_text(report.render(content), encoding="utf-8")
    console = Console(width=TABLE_WIDTH)
    console.print(terminal_table(metrics, titles))
    console.print("\n".join([*sentences, report.no_test(any_sums.sizes[INIT_TIME])]), highlight=False)
    tiles = {f"case_{k + 1}": {name: figures.case_strip(case, name) for name in sums} for k, case in enumerate(cases)}
    tracking.log_comparison(folder, case_images=tiles)


if __name__ == "__main__":
    from pipeline import config

    config.run_stage(main)
