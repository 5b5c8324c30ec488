"""What a reference learns from the training period; alone, or as the base of a network."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

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
from fieldcast.pipeline.datasets.times import from_minutes, to_seconds
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig, Fitted

FIT_BLOCK = 32  # init times read at once
PARTS = 5  # of the training period, each forecast by a fit of the others


@dataclass(frozen=True)
class Part:
    """Part of the training period, to its `last` init time [s since 1970], and the base that was fitted without it."""

    last: int
    arrays: Mapping[str, np.ndarray]  # `<kind>.<name>`


def fit_parts(
    params: config.Params, description: CheckpointConfig, kinds: Mapping[str, BaseModel], arrays: Mapping[str, Any]
) -> tuple[Part, ...]:
    """Return for consecutive parts of the training period the arrays of a base, fitted without it where that matters.

    What a reference with many weights misses in its own training period is less than what it will miss elsewhere; a
    network has to see errors of the size that it is to correct. `kinds` are those of the base with their options.
    """
    closely = {kind: options for kind, options in kinds.items() if models.KINDS[kind].cross_fitted}
    init_times = read_init_times(PREPARED / "init_times.csv", "train")
    parts = []
    for part in np.array_split(np.arange(len(init_times)), PARTS) if closely and len(init_times) >= PARTS else ():
        rest = np.delete(init_times, part)
        own = {kind: fit_kind(params, description, kind, options, rest).arrays for kind, options in closely.items()}
        last = int(to_seconds(init_times[part[-1:]])[0])
        parts.append(Part(last, {**arrays, **by_kind(own)}))
    return tuple(parts)


def by_kind(fitted: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of several kinds of reference by `<kind>.<name>`."""
    return {f"{kind}.{name}": array for kind, arrays in fitted.items() for name, array in arrays.items()}


def fit_kind(
    params: config.Params,
    description: CheckpointConfig,
    kind: str,
    options: BaseModel,
    init_times: np.ndarray | None = None,
) -> Fitted:
    """Return what a reference of this kind learns from the training period: nothing for most kinds.

    Instead of all init times of the period some can be given.
    """
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
        blocks=_training_blocks(description, reader, models.KINDS[kind].fitted_on, init_times),
        rows=None if rows is None else rows.astype(np.float32),
    )
    return Fitted(*models.reference(kind).fit(training))


def _training_blocks(
    description: CheckpointConfig, reader: FrameReader, at_most: int | None, init_times: np.ndarray | None
) -> Blocks:
    """Return the samples at `init_times`, by default of the training period, or evenly spread `at_most` of them."""
    if init_times is None:
        init_times = read_init_times(PREPARED / "init_times.csv", "train")
    return Blocks(reader, thinned(init_times, at_most), description.history, description.horizon)


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
