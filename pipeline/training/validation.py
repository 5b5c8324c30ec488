"""What the validation period decides once a model is fitted: its base, where it keeps that, calibration and votes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import repeat

import numpy as np

from fieldcast import models
from fieldcast.models.layers.outputs import BASES, LearnedOptions
from fieldcast.pipeline import config
from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times, thinned
from fieldcast.pipeline.datasets.parallel import iterate_blocks
from fieldcast.pipeline.datasets.paths import OBSERVATIONS, PREPARED
from fieldcast.pipeline.forecasting import calibration, decisions
from fieldcast.pipeline.forecasting.base import base_options
from fieldcast.pipeline.forecasting.checkpoint import BASE, CheckpointConfig, Fitted
from fieldcast.pipeline.forecasting.forecaster import Forecaster, best_device, forecast_members, forecaster_of
from fieldcast.pipeline.training import coupling
from fieldcast.pipeline.training.references import Part, by_kind, fit_kind, fit_parts

DECISION_BYTES = 2**29  # of forecasts kept for their decisions
SHARE_TIMES = 60  # init times at most, for the comparison with a base
CALIBRATION_TIMES = 200  # init times at most


@dataclass(frozen=True)
class Base:
    """Forecast that a network changes: the kind of reference at each lead, and their arrays by `<kind>.<name>`.

    `parts` have those for training samples, where the base of a sample is fitted without it.
    """

    kinds: tuple[str, ...]
    arrays: dict[str, np.ndarray]
    parts: tuple[Part, ...] = ()


def fit_base(params: config.Params, description: CheckpointConfig) -> Base:
    """Return the base of a network, fitted; with `auto` at each lead the reference that errs least."""
    options = params.models[description.model].options
    assert isinstance(options, LearnedOptions)
    chosen = BASES if options.base == "auto" else tuple(dict.fromkeys(description.bases))
    kinds = {kind: base_options(kind, options.motion) for kind in chosen}
    fitted = {kind: fit_kind(params, description, kind, of_kind).arrays for kind, of_kind in kinds.items()}
    bases = best_bases(params, description, fitted) if options.base == "auto" else description.bases
    used = {kind: kinds[kind] for kind in dict.fromkeys(bases)}
    arrays = by_kind({kind: fitted[kind] for kind in used})
    return Base(bases, arrays, fit_parts(params, description, used, arrays))


def best_bases(
    params: config.Params, description: CheckpointConfig, fitted: Mapping[str, dict[str, np.ndarray]]
) -> tuple[str, ...]:
    """Return at each lead the kind of reference, of those `fitted`, with the least errors in the validation period.

    By the mean over init times of the logarithm of squared errors, as `mean_log_ratio` compares.
    """
    init_times = thinned(read_init_times(PREPARED / "init_times.csv", "validation"), SHARE_TIMES)
    errors = [errors_of_kind(params, description, kind, arrays, init_times) for kind, arrays in fitted.items()]
    compared = np.stack([mean_log_ratio(error, errors[0]) for error in errors])
    kinds = tuple(fitted)
    return tuple(kinds[best] for best in compared.argmin(axis=0))


def with_calibration(params: config.Params, description: CheckpointConfig, fitted: Fitted) -> Fitted:
    """Return a model with members, its calibration and its decisions: by forecasts of some validation init times."""
    forecaster = forecaster_of(description, fitted.arrays, best_device(description.kind))
    init_times = read_init_times(PREPARED / "init_times.csv", "validation")
    init_times = thinned(init_times, CALIBRATION_TIMES)
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    blocks = _keeping(validation_forecasts(params, forecaster, init_times, "calibrate"), kept)
    found = calibration.fit(blocks, len(init_times))
    decided = decide(found, forecaster.inside_range, kept)
    arrays = {**fitted.arrays, **found.arrays(), **decided.arrays()}
    options = params.models[description.model].options
    if isinstance(options, LearnedOptions) and options.coupling == "noise":
        calibrated = [(forecaster.inside_range(found(block)), observed) for block, observed in kept]
        arrays |= coupling.fit(calibrated, options.motion, description.frame.moving).arrays()
    facts = {**fitted.facts, "calibrated on": f"{len(init_times)} init times of the validation period"}
    return replace(fitted, arrays=arrays, facts=facts)


def _keeping(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], kept: list[tuple[np.ndarray, np.ndarray]]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the blocks, and put the first `DECISION_BYTES` of them into `kept`."""
    size = 0
    for block in blocks:
        size += block[0].nbytes
        if size <= DECISION_BYTES or not kept:
            kept.append(block)
        yield block


def decide(
    calibrated: calibration.Calibration,
    inside_range: Callable[[np.ndarray], np.ndarray],
    blocks: list[tuple[np.ndarray, np.ndarray]],
) -> decisions.Decisions:
    """Return from how many of the calibrated members on an event is forecast."""
    _, members, leads = blocks[0][0].shape[:3]
    counts = decisions.VoteCounts(decisions.levels_of(observed for _, observed in blocks), members, leads)
    for block, observed in blocks:
        counts.add(inside_range(calibrated(block)), observed)
    return counts.decisions()


def with_share(params: config.Params, description: CheckpointConfig, fitted: Fitted) -> Fitted:
    """Return a network that keeps its base at the leads where it errs more in the validation period.

    Every init time counts alike, by the ratio of the two errors: otherwise two hours of heavy rain would decide.
    """
    init_times = thinned(read_init_times(PREPARED / "init_times.csv", "validation"), SHARE_TIMES)
    everywhere = {**fitted.arrays, "share": np.ones(description.horizon, np.float32)}
    network = squared_errors(params, description, everywhere, init_times)
    of_kind = {}
    for kind in dict.fromkeys(description.bases):
        prefix = f"{BASE}{kind}."
        arrays = {key.removeprefix(prefix): array for key, array in fitted.arrays.items() if key.startswith(prefix)}
        of_kind[kind] = errors_of_kind(params, description, kind, arrays, init_times)
    base = np.stack([of_kind[kind][:, lead] for lead, kind in enumerate(description.bases)], axis=1)
    helps = mean_log_ratio(network, base) <= 0
    kept = [f"{(lead + 1) * description.step_minutes:g}" for lead in np.flatnonzero(~helps)]
    facts = {**fitted.facts, "leads that keep the base": f"{', '.join(kept)} minutes" if kept else "none"}
    return replace(fitted, arrays={**fitted.arrays, "share": helps.astype(np.float32)}, facts=facts)


def errors_of_kind(
    params: config.Params,
    description: CheckpointConfig,
    kind: str,
    arrays: dict[str, np.ndarray],
    init_times: np.ndarray,
) -> np.ndarray:
    """Return the `squared_errors` of a network's base of this kind, fitted as `arrays`, by itself."""
    options = params.models[description.model].options
    assert isinstance(options, LearnedOptions)
    of_base = base_options(kind, options.motion).model_dump(mode="json")
    return squared_errors(params, replace(description, kind=kind, options=of_base), arrays, init_times)


def squared_errors(
    params: config.Params, description: CheckpointConfig, arrays: dict[str, np.ndarray], init_times: np.ndarray
) -> np.ndarray:
    """Return squared errors (init_time, horizon) in the validation period, each variable in its own scale."""
    forecaster = forecaster_of(description, arrays, best_device(description.kind))
    scale = np.array([channel.max - channel.min or 1.0 for channel in description.channels[: description.targets]])
    sums = []
    for members, observed in validation_forecasts(params, forecaster, init_times, "compare with the base"):
        errors = (members[:, 0] - observed) / scale[:, None, None]
        sums.append(np.nansum(errors**2, axis=(0, 2, 3, 4)))
    return np.stack(sums)


def mean_log_ratio(errors: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the mean over init times of log(errors / others), (horizon,), where neither is 0; 0 without any."""
    both = (errors > 0) & (others > 0)
    logarithms = np.where(both, np.log(np.where(both, errors, 1.0)) - np.log(np.where(both, others, 1.0)), 0.0)
    mean: np.ndarray = logarithms.sum(axis=0) / np.maximum(both.sum(axis=0), 1)
    return mean


def validation_forecasts(
    params: config.Params, forecaster: Forecaster, init_times: np.ndarray, what: str
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the members (1, m, horizon, c, y, x) and what was observed (1, horizon, c, y, x) of each init time."""
    description = forecaster.config
    scheduler = models.scheduler_of(description.kind) or "synchronous"
    cache = params.sample.cache if scheduler == "synchronous" else "store"  # a process would decode all for each job
    reader = FrameReader(OBSERVATIONS, description.channel_names, cache)
    jobs = list(zip(repeat(forecaster), repeat(reader), reader.positions(init_times), init_times, strict=False))
    yield from iterate_blocks(validate_one, jobs, scheduler=scheduler, description=what, unit="init time")


def validate_one(
    forecaster: Forecaster, reader: FrameReader, position: int, init_time: np.datetime64
) -> tuple[np.ndarray, np.ndarray]:
    """Return the members (1, m, horizon, c, y, x) and what was observed (1, horizon, c, y, x) of one init time."""
    description = forecaster.config
    history = description.history
    frames = reader.sample(position, history, description.horizon)[None]
    tiles = config.Forecast()  # as large as the training crop
    members = forecast_members(
        forecaster, frames[:, :history], np.array([init_time]), tiles.tile_cells, tiles.overlap_cells
    )
    return members, frames[:, history:, : description.targets]
