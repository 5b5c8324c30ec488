"""The text of a proposed `params.yaml`: each setting with its unit and its reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fieldcast.pipeline.config.sources import SharedOptions
from fieldcast.pipeline.proposal.choices import BATCH, DAY, Choices, Period
from fieldcast.pipeline.proposal.survey import Survey

WIDTH = 31  # columns before a comment
PLAIN = re.compile(r"[A-Za-z/]([A-Za-z0-9_./-]|:(?=/))*|\d{4}-\d\d-\d\dT\d\d:\d\d")  # text that YAML takes for text
SPECIAL = ("yes", "no", "true", "false", "null", "on", "off")
RAM_BYTES = 2e9  # of observations that are kept in memory
HEAD = (
    "# Proposed by `fieldcast init` from some frames of the archive: everything here may be changed. Units are in the",
    "# names; times are UTC. `fieldcast check` validates it.",
    "",
)
REASONS = {
    "persistence": "nothing changes: the least that a forecast must beat",
    "climatology": "the mean of the training period",
    "damped_persistence": "the latest anomaly, which fades with lead time",
    "advection": "the latest field, moved along",
    "linear": "ridge regression from principal components: strong for smooth fields",
    "linear_quantiles": "the same with ten quantiles of its errors",
    "lagrangian_regression": "the field at several scales, moved along, weighted by lead",
    "lagrangian_quantiles": "the same with ten quantiles of its errors",
    "unet": "a small network that changes its base's forecast; more kinds: docs/models.md of fieldcast",
}


def params_text(survey: Survey, choices: Choices, experiment: str) -> str:
    """Return the text of params.yaml."""
    parts = (
        HEAD,
        _source(survey),
        _ingest(survey),
        _prepare(survey, choices),
        _sample(survey, choices),
        _train(choices),
        _evaluation(survey, choices),
        _line("track", {}, ""),
        _line("  experiment", experiment, "experiment and registered model in MLflow"),
        [""],
        _models(choices),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def yaml_value(value: Any) -> str:
    """Return a value on one line of YAML; text is quoted unless it is plain."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)}: {yaml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(yaml_value, value)) + "]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    return _key(str(value)) if isinstance(value, str) else str(value)


def _key(text: str) -> str:
    bare = PLAIN.fullmatch(text) and text.lower() not in SPECIAL
    return text if bare else json.dumps(text, ensure_ascii=False)


def _line(key: str, value: Any, reason: str) -> list[str]:
    text = f"{key}:" if value == {} else f"{key}: {yaml_value(value)}"
    return [f"{text.ljust(WIDTH - 1)} # {reason}" if reason else text]


def _source(survey: Survey) -> Iterator[str]:
    info, (rows, columns) = survey.info, survey.info.grid_shape
    units = ", ".join(f"{name} in {units}" for name, units in info.variables.items())
    yield from _line("source", {}, f"{units} on {rows} x {columns} cells, every {_duration(survey.step_minutes)}")
    yield f"  kind: {survey.options.kind}"
    options = survey.options.model_dump(mode="json", exclude_unset=True, exclude={"kind"})
    for key in sorted(options, key=lambda key: key in SharedOptions.model_fields):  # its own first
        yield from _line(f"  {key}", options[key], survey.notes.get(key, ""))
    yield ""


def _ingest(survey: Survey) -> Iterator[str]:
    yield from _line("ingest", {}, survey.notes.get("ingest", ""))
    yield from _line("  duplicates", survey.rules.duplicates, "refuse | first | last | merge: two frames of one time")
    yield from _line("  out_of_order", survey.rules.out_of_order, "refuse | sort")
    shard = int(np.clip(64e6 / (4 * np.prod(survey.info.grid_shape)), 24, 288))
    yield from _line("  shard_frames", shard, "frames in one file of the store")
    yield ""


def _prepare(survey: Survey, choices: Choices) -> Iterator[str]:
    gap = choices.history + choices.horizon
    yield "prepare:"
    yield from _line("  splits", {}, f"periods of init times, {gap} steps apart: no frame is in two of them")
    for name, period in choices.splits.items():
        yield from _line(f"    {name}", _period(period), f"{period.count} init times{_thinned(name, period)}")
    yield from _line("  transform", {}, "for networks: log(1 + x / floor) of amounts, most of which are small")
    for name, transform in choices.transforms.items():
        yield from _line(
            f"    {_key(name)}", transform, f"floor in {_units(survey, name)}" if "floor" in transform else ""
        )
    why = "networks forecast departures from the climatology" if choices.anomalies else "rain has no usual pattern"
    yield from _line("  anomalies", choices.anomalies, why)
    what = "the quality report counts cells above it; no model sees this"
    yield from _line("  wet_above", _amounts(choices.wet_above), f"{_all_units(survey)}: {what}")
    yield ""


def _period(period: Period) -> dict[str, Any]:
    thin = {"every_steps": period.every_steps} if period.every_steps > 1 else {}
    return {"start": _moment(period.start), "end": _moment(period.end), **thin}


def _thinned(name: str, period: Period) -> str:
    if period.every_steps == 1:
        return ""
    return f", each {period.every_steps} steps: enough for a first {'run' if name == 'test' else 'training'}"


def _sample(survey: Survey, choices: Choices) -> Iterator[str]:
    step, info = survey.step_minutes, survey.info
    size = 4.0 * len(info.variables) * info.time_axis.times.size * float(np.prod(info.grid_shape))
    yield "sample:"
    yield from _line("  history", choices.history, f"frames in: {_duration(choices.history * step)}")
    yield from _line("  horizon", choices.horizon, f"frames out: {_duration(choices.horizon * step)} ahead")
    cache, why = ("ram", "held in memory") if size < RAM_BYTES else ("store", "read for each batch")
    yield from _line("  cache", cache, f"ram | store: {size / 1e6:,.0f} MB of observations are {why}")
    yield ""


def _train(choices: Choices) -> Iterator[str]:
    yield from _line("train", {}, "of all networks: same data, loss and budget")
    yield from _line("  loss", "mse" if choices.anomalies else "mix", "mix: of logarithms and of amounts, for rain")
    yield from _line("  epochs", choices.epochs, "few, for a first run; more, up to some tens, forecast better")
    yield from _line("  batch_size", BATCH, "")
    yield from _line("  learning_rate", 0.002, "")
    yield ""
    yield "forecast:"
    yield from _line("  batch_size", 16, "init times written together; no value depends on it")
    yield ""


def _evaluation(survey: Survey, choices: Choices) -> Iterator[str]:
    first = next(iter(survey.info.variables))
    yield "verify:"
    yield from _line("  thresholds", {}, "of events, within the range of the frames that were read")
    for name, levels in choices.thresholds.items():
        values, units = survey.values[name], _units(survey, name)
        yield from _line(f"    {_key(name)}", list(levels), f"{units}, of {values.low:.4g} to {values.high:.4g}")
    if not any(choices.thresholds.values()):
        yield "    {}"
    why = "one, five and fifteen cells" if choices.neighbourhoods_km else "the grid's units are no lengths"
    yield from _line("  neighbourhoods_km", list(choices.neighbourhoods_km), why)
    yield ""
    yield from _line("promotion", {}, "when a model becomes the champion: better in paired tests, within the guards")
    yield from _line("  score", "rmse", "rmse | mae | crps | value")
    if len(survey.info.variables) > 1:
        yield from _line("  variable", first, "whose score decides; in the others no reference may be better")
    if choices.leads_minutes:
        yield from _line("  leads_minutes", list(choices.leads_minutes), "pooled, and each by itself")
    yield from _line("  guards", {}, "limits that every champion keeps")
    units = f"{_all_units(survey)}: a fifth of the spread"
    yield from _line("    max_mean_error", _amounts(choices.max_mean_error), units)
    yield from _line("    min_coverage", 0.8, "of the 90 % interval, where a model gives one")
    yield from _line("    max_coverage", 0.98, "")
    yield ""


def _models(choices: Choices) -> Iterator[str]:
    yield from _line("models", {}, "references that every other must beat, then what learns")
    for name, options in choices.models.items():
        yield f"  {name}: {yaml_value(options)}  # {REASONS[name]}"


def _amounts(amounts: Mapping[str, float]) -> Any:
    """Return amounts by variable as they are written: of one variable a plain number."""
    return dict(amounts) if len(amounts) > 1 else next(iter(amounts.values()))


def _all_units(survey: Survey) -> str:
    return ", ".join(survey.info.variables.values())


def _units(survey: Survey, name: str) -> str:
    return survey.info.variables[name]


def _moment(time: np.datetime64) -> str:
    text = str(time.astype("datetime64[s]"))
    return text.removesuffix(":00")


def _duration(minutes: float) -> str:
    """Return minutes in the largest unit that is whole or nearly so: '30 minutes', '12 hours', '7 days'."""
    for size, unit in ((DAY, "day"), (60, "hour"), (1, "minute")):
        if minutes >= size and minutes % size == 0:
            return f"{minutes / size:g} {unit}{'s' * (minutes != size)}"
    return f"{minutes:g} minutes"
