"""Records of a comparison in the runs of its models."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fieldcast.pipeline.datasets.store import file_digest
from fieldcast.pipeline.forecasting import costs
from fieldcast.pipeline.tracking.runs import COSTS_FILE, KIND_TAG, LEAD_SCORES, SCORES_FOLDER, Run

SCORES_TAG = "fieldcast.scores"  # digest of the sums that a run's scores are of


def log_comparison(
    runs: Mapping[str, Run],
    folder: Path,
    case_images: Mapping[str, Mapping[str, np.ndarray]],
    spent: Mapping[str, costs.Costs],
) -> None:
    """Add the comparison's files, the model's costs and one image a case, under the same key in all, to every run.

    `case_images` holds (h, w, 3) uint8 arrays by case, then model.
    """
    for model, run in runs.items():
        run.artifact(folder, "comparison")
        for key, images in case_images.items():
            run.image(key, images[model], step=0)
        known = spent.get(model, costs.Costs())
        spent_by_name = {f"spent/{name}": value for name, value in asdict(known).items()}
        run.metrics(
            {name: float(value) for name, value in spent_by_name.items() if isinstance(value, int | float)}, step=0
        )
        with tempfile.TemporaryDirectory() as scratch:
            costs.write(known, Path(scratch) / COSTS_FILE)
            run.artifact(Path(scratch) / COSTS_FILE, SCORES_FOLDER)
        run.end()


def log_scores(run: Run, kind: str, scores: Mapping[str, Mapping[int, float]], sums: Path) -> None:
    """Add a model's scores to its run, unless it has those of the file `sums` already.

    The file goes with them, so that any two runs can be compared later.
    """
    digest = file_digest(sums)
    if run.tag(SCORES_TAG) == digest:
        return
    first = {score: curve for score, curve in scores.items() if score.startswith(LEAD_SCORES)}
    run.curves("lead", first)  # MLflow makes a section of charts of each prefix, in alphabetical order
    run.curves("lead_more", {score: curve for score, curve in scores.items() if score not in first})
    run.metrics({f"test/{score}": _mean(curve) for score, curve in first.items()}, step=0)
    run.artifact(sums, SCORES_FOLDER)
    run.tags({KIND_TAG: kind, SCORES_TAG: digest})
    run.end()


def _mean(curve: Mapping[int, float]) -> float:
    values = [value for value in curve.values() if math.isfinite(value)]
    return sum(values) / len(values) if values else math.nan
