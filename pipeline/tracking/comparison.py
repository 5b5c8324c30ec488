"""Records of a comparison in the runs of its models."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fieldcast.pipeline.forecasting import costs
from fieldcast.pipeline.tracking.runs import COSTS_FILE, SCORES_FOLDER, Run


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
