"""Stage `compare`: the scores of all models -> `data/comparison/`, the verdict in the terminal, and the champion."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from rich.console import Console

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, COMPARISON, COSTS, FORECASTS, OBSERVATIONS, PREPARED, SCORES
from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS
from fieldcast.pipeline.errors import TrackerError, public
from fieldcast.pipeline.evaluation.champion import promote_by_rule
from fieldcast.pipeline.evaluation.comparison import Comparison, Entry, compare, eventful, extremes, minute
from fieldcast.pipeline.evaluation.mean_flow import mean_flow
from fieldcast.pipeline.forecasting import costs
from fieldcast.pipeline.report.coastlines import coastlines
from fieldcast.pipeline.report.maps import case_of, case_strip
from fieldcast.pipeline.report.terminal import WIDTH, terminal_table
from fieldcast.pipeline.report.write import ShownCase, write_report
from fieldcast.pipeline.tracking import runs as tracking
from fieldcast.pipeline.tracking.comparison import log_comparison, log_scores
from fieldcast.pipeline.tracking.identity import complete
from fieldcast.pipeline.tracking.registry import Registry
from fieldcast.pipeline.verification.aggregation import fields_of, read_sums, scores_of, units_of
from fieldcast.pipeline.verification.scores import by_key

LOCAL = "http://127.0.0.1:5000"  # where `make ui` listens

log = logging.getLogger(__name__)


def main() -> None:
    """Compare all models in `params.yaml` and write `data/comparison/`."""
    params = config.load()
    digests = {name: store.directory_digest(CHECKPOINTS / name) for name in params.models}
    runs = tracking.runs_of(params.track.experiment, digests)
    try:
        _compare(params, digests, runs)
    except BaseException as error:
        for run in runs.values():
            run.abandon(error)
        raise


def _compare(params: config.Params, digests: Mapping[str, str], runs: Mapping[str, tracking.Run]) -> None:
    for name, run in runs.items():
        complete(run, params, name)
        sums = SCORES / f"{name}.nc"
        log_scores(run, params.models[name].kind, by_key(scores_of(read_sums(sums))), sums)
    comparison = compare({name: _entry(name, each, runs[name]) for name, each in params.models.items()}, params.compare)
    cases = _cases(comparison)
    settings = public(params.model_dump(mode="json"))
    write_report(comparison, COMPARISON, settings, cases, _flows(comparison, params))
    console = Console(width=WIDTH)
    console.print(terminal_table(comparison))
    console.print("\n".join(comparison.verdict), highlight=False, markup=False)
    answering = all(run.client is not None for run in runs.values())
    for sentence in _promote(comparison, digests, params) if answering else []:
        console.print(sentence, highlight=False, markup=False)
    spent = {name: entry.costs for name, entry in comparison.entries.items()}
    log_comparison(runs, COMPARISON, _tiles(cases, comparison.comparable), spent)


def _entry(name: str, model: config.ModelEntry, run: tracking.Run) -> Entry:
    spent = costs.read(COSTS / "training" / f"{name}.json", COSTS / "forecast" / f"{name}.json")
    return Entry(read_sums(SCORES / f"{name}.nc"), model.kind, spent, run.url(LOCAL) or "", _recipe(model))


def _recipe(model: config.ModelEntry) -> str:
    """Return a model's kind and options but for its seed, as text; '' for a reference, which has none."""
    options = model.model_dump(mode="json")
    return json.dumps({**options, "seed": None}, sort_keys=True) if "seed" in options else ""


def _cases(comparison: Comparison) -> list[ShownCase]:
    """Return the most eventful init times, with maps of all leads, then the best and the worst forecast."""
    field = fields_of(comparison.sums)[0]
    observed = store.open_observations(OBSERVATIONS)[field]
    forecasts = {name: store.open_forecasts(FORECASTS / f"{name}.zarr")[field] for name in comparison.comparable}
    maps_of = partial(case_of, observed, forecasts, coast=coastlines(observed))
    shown = []
    for k, init in enumerate(eventful(comparison.sums)):
        rank = "The most eventful init time" if k == 0 else f"Number {k + 1} in observed activity"
        caption = f"{rank}: {minute(init)} UTC, chosen by what was observed."
        shown.append(ShownCase(maps_of(init), caption, "case" if k == 0 else f"case_{k + 1}", slider=True))
    for stem, (caption, init) in zip(("best", "worst"), extremes(comparison).items(), strict=False):
        shown.append(ShownCase(maps_of(init), f"{caption}, {minute(init)} UTC.", stem))
    return shown


def _flows(comparison: Comparison, params: config.Params) -> dict[str, str]:
    """Return the mean flow of the training and the test period as text; nothing for a field that is no rain."""
    field = fields_of(comparison.sums)[0]
    if units_of(comparison.sums, field) != RAIN_RATE_UNITS:
        return {}
    reader = FrameReader(OBSERVATIONS, [field])
    flows = {
        f"Mean flow, {name} period": mean_flow(
            reader, read_init_times(PREPARED / "init_times.csv", split), params.sample.history
        )
        for split, name in (("train", "training"), ("test", "test"))
    }
    return {label: "none to be seen" if flow is None else flow.text() for label, flow in flows.items()}


def _tiles(cases: Sequence[ShownCase], names: Mapping[str, object]) -> dict[str, dict[str, np.ndarray]]:
    """Return the picture of each eventful case and model for MLflow's grid of images."""
    return {
        f"case_{k + 1}": {name: case_strip(it.case, name) for name in names} for k, it in enumerate(cases) if it.slider
    }


def _promote(comparison: Comparison, digests: Mapping[str, str], params: config.Params) -> list[str]:
    try:
        return promote_by_rule(comparison, digests, params, Registry(params.track.experiment))
    except TrackerError as error:
        log.warning("no model promoted: %s", error)
        return []


if __name__ == "__main__":
    config.run_stage(main)
