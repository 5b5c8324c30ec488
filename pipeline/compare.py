"""Stage `compare`: the scores of all models -> `data/comparison/`, the verdict in the terminal, and the champion."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, COMPARISON, COSTS, FORECASTS, OBSERVATIONS, PREPARED, SCORES
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS
from fieldcast.pipeline.errors import TrackerError, public, run_stage
from fieldcast.pipeline.evaluation.champion import promote_by_rule
from fieldcast.pipeline.evaluation.comparison import Comparison, Entry, compare_all, eventful, extremes, minute
from fieldcast.pipeline.evaluation.mean_flow import mean_flow
from fieldcast.pipeline.forecasting import costs
from fieldcast.pipeline.report.coastlines import coastlines
from fieldcast.pipeline.report.maps import case_of, case_strip
from fieldcast.pipeline.report.terminal import print_comparisons, terminal
from fieldcast.pipeline.report.write import About, Shown, ShownCase, write_report
from fieldcast.pipeline.tracking import runs as tracking
from fieldcast.pipeline.tracking.comparison import log_comparison, log_scores
from fieldcast.pipeline.tracking.identity import complete
from fieldcast.pipeline.tracking.registry import Registry
from fieldcast.pipeline.verification.aggregation import scores_of
from fieldcast.pipeline.verification.scores import by_key
from fieldcast.pipeline.verification.sums_file import read_sums

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
    entries = {name: _entry(name, each, runs[name]) for name, each in params.models.items()}
    comparisons = compare_all(entries, params.compare)
    shown = {field: Shown(_cases(each), _flows(each, params)) for field, each in comparisons.items()}
    settings = public(params.model_dump(mode="json"))
    write_report(comparisons, COMPARISON, settings, shown, _about(params))
    console = terminal()
    print_comparisons(console, comparisons)
    answering = all(run.client is not None for run in runs.values())
    for sentence in _promote(entries, comparisons, digests, params) if answering else []:
        console.print(sentence, highlight=False, markup=False)
    spent = {name: entry.costs for name, entry in entries.items()}
    log_comparison(runs, COMPARISON, _tiles(shown, comparisons), spent)


def _entry(name: str, model: config.ModelEntry, run: tracking.Run) -> Entry:
    spent = costs.read(COSTS / "training" / f"{name}.json", COSTS / "forecast" / f"{name}.json")
    return Entry(read_sums(SCORES / f"{name}.nc"), model.kind, spent, run.page(), _recipe(model))


def _recipe(model: config.ModelEntry) -> str:
    """Return a model's kind and options but for its seed, as text; '' for a reference, which has none."""
    options = model.model_dump(mode="json")
    return json.dumps({**options, "seed": None}, sort_keys=True) if "seed" in options else ""


def _cases(comparison: Comparison) -> list[ShownCase]:
    """Return the most eventful init times, with maps of all leads, then the best and the worst forecast."""
    field = comparison.variable
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
    if comparison.units != RAIN_RATE_UNITS:
        return {}
    reader = FrameReader(OBSERVATIONS, [comparison.variable])
    flows = {
        f"Mean flow, {name} period": mean_flow(
            reader, read_init_times(PREPARED / "init_times.csv", split), params.sample.history
        )
        for split, name in (("train", "training"), ("test", "test"))
    }
    return {label: "none to be seen" if flow is None else flow.text() for label, flow in flows.items()}


def _tiles(shown: Mapping[str, Shown], comparisons: Mapping[str, Comparison]) -> dict[str, dict[str, np.ndarray]]:
    """Return the picture of each eventful case and model for MLflow's grid of images."""
    return {
        f"{f'{field}_' if len(shown) > 1 else ''}case_{k + 1}": {
            name: case_strip(one.case, name) for name in comparisons[field].comparable
        }
        for field, own in shown.items()
        for k, one in enumerate(own.cases)
        if one.slider
    }


def _about(params: config.Params) -> About:
    """Return what the head of the report says: when, from which commit and which data it was made."""
    commit = tracking.git_commit(Path())
    head = {
        "Made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by fieldcast {metadata.version('fieldcast')}",
        "Commit": commit or "none",
        "Data": f"source {params.source.kind}, prepared data {read_digest(PREPARED)}",
    }
    return About(params.track.experiment, head)


def _promote(
    entries: Mapping[str, Entry],
    comparisons: Mapping[str, Comparison],
    digests: Mapping[str, str],
    params: config.Params,
) -> list[str]:
    try:
        return promote_by_rule(entries, comparisons, digests, params, Registry(params.track.experiment))
    except TrackerError as error:
        log.warning("no model promoted: %s", error)
        return []


if __name__ == "__main__":
    run_stage(main)
