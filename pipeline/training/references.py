"""What a reference learns from the training period; alone, or as the base of a network."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel
from tqdm import tqdm

from fieldcast import models
from fieldcast.models.layers.reference import Block, Training
from fieldcast.pipeline import config
from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times, thinned
from fieldcast.pipeline.datasets.grid import row_weights
from fieldcast.pipeline.datasets.paths import OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.preparation.climatology import complete, read_climatology
from fieldcast.pipeline.datasets.times import from_minutes
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig, Fitted

FIT_BLOCK = 32  # init times read at once


def fit_kind(params: config.Params, description: CheckpointConfig, kind: str, options: BaseModel) -> Fitted:
    """Return what a reference of this kind learns from the training period: nothing for most kinds."""
    if not models.KINDS[kind].fitted:
        return Fitted({}, {})
    dataset = read_climatology(PREPARED)
    climatology = complete(np.stack([dataset[name].values for name in description.target_names], axis=1))
    reader = FrameReader(OBSERVATIONS, description.target_names, params.sample.cache)
    rows = row_weights(reader.observations)
    training = Training(
        options=options,
        climatology=climatology,
        horizon=description.horizon,
        step=from_minutes(description.step_minutes),
        blocks=_training_blocks(description, reader, models.KINDS[kind].fitted_on),
        rows=None if rows is None else rows.astype(np.float32),
    )
    return Fitted(*models.reference(kind).fit(training))


def _training_blocks(description: CheckpointConfig, reader: FrameReader, at_most: int | None) -> Blocks:
    """Return the samples of the training period, or evenly spread `at_most` of them."""
    init_times = thinned(read_init_times(PREPARED / "init_times.csv", "train"), at_most)
    return Blocks(reader, init_times, description.history, description.horizon)


@dataclass(frozen=True)
class Blocks:
    """Samples at `init_times`: history, target and init times, `FIT_BLOCK` at once, as often as wanted."""

    reader: FrameReader
    init_times: np.ndarray
    history: int
    horizon: int

    def __iter__(self) -> Iterator[Block]:
        positions = self.reader.positions(self.init_times)
        starts = range(0, len(positions), FIT_BLOCK)
        for start in tqdm(starts, desc="fit", unit="block", disable=not sys.stderr.isatty()):
            chosen = slice(start, start + FIT_BLOCK)
            frames = self.reader.samples(positions[chosen], self.history, self.horizon)
            yield frames[:, : self.history], frames[:, self.history :], self.init_times[chosen]
