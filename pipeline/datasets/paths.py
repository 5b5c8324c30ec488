"""Artefacts under `data/` by which stages meet, relative to the project's folder."""

from pathlib import Path

CHECKED = Path("data/checked")  # params.json: valid, all of them; bases/<model>, code/<part>: digests
OBSERVATIONS = Path("data/observations.zarr")
PREPARED = Path("data/prepared")
CHECKPOINTS = Path("data/checkpoints")
FORECASTS = Path("data/forecasts")
SCORES = Path("data/scores")
COSTS = Path("data/costs")  # training/<model>.json and forecast/<model>.json: measured, so never twice the same
COMPARISON = Path("data/comparison")
RESUME = Path("data/resume")  # outside all DVC outputs: DVC empties those before a stage runs
