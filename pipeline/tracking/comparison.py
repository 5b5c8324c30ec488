"""Records of a comparison in the runs of its models."""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fieldcast.pipeline.datasets.store import file_digest
from fieldcast.pipeline.forecasting import costs
from fieldcast.pipeline.tracking.records import COMPARISON_TAG, SCORES_TAG
from fieldcast.pipeline.tracking.runs import COSTS_FILE, KIND_TAG, LEAD_SCORES, SCORES_FOLDER, Run


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
        known = spent.get(model, costs.Costs())
        if not run.begin(COMPARISON_TAG, _digest(folder, known)):
            continue
        run.artifact(folder, "comparison")
        for key, images in case_images.items():
            run.image(key, images[model], step=0)
        spent_by_name = {f"spent/{name}": value for name, value in asdict(known).items()}
        run.metrics(
            {name: float(value) for name, value in spent_by_name.items() if isinstance(value, int | float)}, step=0
        )
        with tempfile.TemporaryDirectory() as scratch:
            costs.write(known, Path(scratch) / COSTS_FILE)
            run.artifact(Path(scratch) / COSTS_FILE, SCORES_FOLDER)
        run.tags({COMPARISON_TAG: _digest(folder, known)})
        run.end()


def log_scores(run: Run, kind: str, scores: Mapping[str, Mapping[float, float]], sums: Path) -> None:
    """Add a model's scores to its run, unless it has those of the file `sums` already.

    Where it has others, a new run takes its place: a run shows what was evaluated last, and nothing else.
    The file goes with them, so that any two runs can be compared later.
    """
    digest = file_digest(sums)
    if not run.begin(SCORES_TAG, digest, renew=True):
        return
    first = {score: curve for score, curve in scores.items() if score.startswith(LEAD_SCORES)}
    run.curves("lead", first)  # MLflow makes a section of charts of each prefix, in alphabetical order
    run.curves("lead_more", {score: curve for score, curve in scores.items() if score not in first})
    run.metrics({f"test/{score}": _mean(curve) for score, curve in first.items()}, step=0)
    run.artifact(sums, SCORES_FOLDER)
    run.tags({KIND_TAG: kind, SCORES_TAG: digest})
    run.end()


def _digest(folder: Path, spent: costs.Costs) -> str:
    """Return the digest of a comparison but for its pages, which say when they were made."""
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    digests = {name: file_digest(path) for name, path in sorted(files.items()) if path.suffix != ".html"}
    return hashlib.sha256(f"{digests} {spent}".encode()).hexdigest()


def _mean(curve: Mapping[float, float]) -> float:
    values = [value for value in curve.values() if math.isfinite(value)]
    return sum(values) / len(values) if values else math.nan
