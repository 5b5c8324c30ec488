"""Checks of a whole parameters file and its source before a run, and the size of that run."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from fieldcast import models
from fieldcast.pipeline import config
from fieldcast.pipeline.cli.misfits import misfits
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.grid import spacing_km
from fieldcast.pipeline.datasets.paths import OBSERVATIONS
from fieldcast.pipeline.datasets.preparation.ranges import Range, ranges_of
from fieldcast.pipeline.datasets.preparation.splits import channel_order, select_init_times
from fieldcast.pipeline.datasets.schema import X, Y, field_names
from fieldcast.pipeline.datasets.signature import signature_of
from fieldcast.pipeline.datasets.times import minutes_of
from fieldcast.pipeline.errors import InputError, UserError
from fieldcast.pipeline.forecasting.checkpoint import extra_channels, frame_of
from fieldcast.pipeline.live.archive.exports import check_kinds
from fieldcast.pipeline.live.feed.limits import require_threshold
from fieldcast.pipeline.live.places.geojson import read_features
from fieldcast.pipeline.live.schedule import CycleSchedule, cron_trigger
from fieldcast.pipeline.sources import SourceInfo, inspect_source
from fieldcast.pipeline.sources.samples import some_frames
from fieldcast.pipeline.training.amounts import check_amounts, check_cells
from fieldcast.pipeline.training.memory import check_memory, training_cells
from fieldcast.pipeline.verification.strata import region_cuts

Result = TypeVar("Result")
LOOKED_AT = 6  # frames of a source without observations


@dataclass
class Faults:
    """Faults of the parameters, one line each, found by checks that do not depend on one another."""

    lines: list[str] = field(default_factory=list)

    def of(self, check: Callable[..., Result], *arguments: Any) -> Result | None:
        """Return what the check returns; None where it finds a fault, which is kept."""
        try:
            return check(*arguments)
        except InputError as error:
            self.lines += str(error).splitlines()
            return None

    def refuse(self) -> None:
        """Raise `InputError` with all faults if there are any."""
        if self.lines:
            raise InputError("\n".join(dict.fromkeys(self.lines)))


def facts_of(path: Path) -> dict[str, Any]:
    """Return facts about the source and the run, under `warnings` a list of settings that don't fit the data.

    Raise `InputError` for all that would stop the run later.
    """
    params = config.read(path)
    faults = Faults()
    faults.of(check_packages, params)
    faults.of(cron_trigger, params.live.schedule)
    faults.of(check_kinds, params.live.copies, params.verify)
    faults.of(check_places, params)
    source = faults.of(inspect_source, params.source, params.ingest)
    if source is None:
        faults.refuse()
        raise AssertionError("a source that cannot be read is a fault")
    channels = faults.of(check_names, params, list(source.variables))
    step = pd.Timedelta(source.step).to_pytimedelta()
    minutes = minutes_of(source.step)
    for check, subject in (
        (check_sizes, source),
        (check_regions, source),
        (check_spacing, source),
        (check_live, minutes),
        (check_thresholds, source),
        (check_leads, minutes),
    ):
        faults.of(check, params, subject)
    ranges = known_ranges(params, source, channels) if channels else []
    if channels:
        faults.of(params.train.check_units, [source.variables[name] for name in params.prepare.targets or channels])
        faults.of(check_values, params, ranges)
    counts = faults.of(count_init_times, params, source)
    needs = {
        name: faults.of(training_need, params, name, channels, step, source.grid_shape) for name in _learned(params)
    }
    faults.refuse()
    warnings = misfits(params, source, seen_ranges(params, ranges))
    return _facts(params, source, channels or [], counts or {}, needs) | {"warnings": warnings}


def _facts(
    params: config.Params, source: SourceInfo, channels: list[str], counts: Mapping[str, int], needs: Mapping[str, Any]
) -> dict[str, Any]:
    rows, columns = source.grid_shape
    times, present = source.time_axis.times, source.time_axis.present
    targets = len(params.prepare.targets or channels)
    frame = 4 * rows * columns
    forecasts = most_members(params) * targets * counts["test"] * params.sample.horizon * frame
    step = pd.Timedelta(source.step).to_pytimedelta()
    return {
        "source": params.source.kind,
        "variables": ", ".join(f"{name} [{units}]" for name, units in source.variables.items()),
        "grid": f"{rows} x {columns} cells of {source.spacing[0]:g} {source.spacing_units}",
        "time": f"{times[0].astype('datetime64[m]')} to {times[-1].astype('datetime64[m]')}, every {step}",
        "frames": f"{int(present.sum())} of {times.size} ({times.size - int(present.sum())} missing)",
        "init times": ", ".join(f"{split} {counts[split]}" for split, _ in params.prepare.splits.in_order()),
        "training": training_cost(params, counts["train"]),
        **needs,
        "observations": _megabytes(len(channels) * times.size * frame),
        "forecasts of the largest model": _megabytes(forecasts),
    }


def count_init_times(params: config.Params, source: SourceInfo) -> dict[str, int]:
    """Return the number of init times of each split; raise `InputError` where gaps are too short or one has none."""
    prepare, sample = params.prepare, params.sample
    step = pd.Timedelta(source.step).to_pytimedelta()
    config.check_gaps(prepare.splits, sample.history, sample.horizon, step)
    times, present = source.time_axis.times, source.time_axis.present
    init_times = select_init_times(times, present, prepare, sample.history, sample.horizon)
    return {str(split): int(count) for split, count in init_times["split"].value_counts().items()}


def check_names(params: config.Params, variables: list[str]) -> list[str]:
    """Return the channels in order; raise `InputError` where an option names a variable that the source lacks."""
    channels = channel_order(variables, params.prepare)
    _check_known("live.limits", params.live.limits, channels, "models read")
    targets, promotion = params.prepare.targets or channels, params.promotion
    _check_known("prepare.wet_above", _named(params.prepare.wet_above), channels, "models read")
    _check_known("verify.thresholds", params.verify.thresholds, targets, "forecast are")
    _check_known("verify.storm_cells", params.verify.storm_cells, targets, "forecast are")
    _check_known("promotion.variable", [promotion.variable] if promotion.variable else [], targets, "forecast are")
    _check_known("promotion.guards.max_mean_error", _named(promotion.guards.max_mean_error), targets, "forecast are")
    _check_user(params, promotion.variable or targets[0])
    return channels


def _named(amounts: config.Amounts | None) -> Iterable[str]:
    return amounts if isinstance(amounts, dict) else ()


def _check_user(params: config.Params, deciding: str) -> None:
    """Raise `InputError` where the event of `promotion.cost_loss` is none that verification counts."""
    user, thresholds = params.promotion.cost_loss, params.verify.thresholds.get(deciding, [])
    if user is not None and user.threshold not in thresholds:
        raise InputError(
            f"params.yaml: promotion.cost_loss.threshold is {user.threshold:g}, expected one of verify.thresholds of"
            f" {deciding}, {thresholds}: add it there"
        )


def _check_known(key: str, names: Iterable[str], expected: Sequence[str], what: str) -> None:
    for name in names:
        if name not in expected:
            raise InputError(f"params.yaml: {key} names {name!r}, {what} {', '.join(expected)}")


def check_values(params: config.Params, ranges: list[Range]) -> None:
    """Raise `InputError`, a line for each fault, where a transform or a model does not fit units or values."""
    faults = Faults()
    targets = params.prepare.targets or [each.name for each in ranges]
    for each in ranges:
        faults.of(each.require_transform, params.prepare.transform.get(each.name, config.Transform()))
        faults.of(each.require_change, OBSERVATIONS)
    for model, entry in params.models.items():
        faults.of(check_amounts, model, entry.options, [each for each in ranges if each.name in targets])
    faults.refuse()


def known_ranges(params: config.Params, source: SourceInfo, channels: list[str]) -> list[Range]:
    """Return the variables with their units, and their range where the observations of this source are there."""
    units = [Range(name, source.variables[name]) for name in channels]
    if not OBSERVATIONS.exists():
        return units
    try:
        observations = store.open_observations(OBSERVATIONS)
    except UserError:  # the stage that reads them says so
        return units
    own = {name: observations[name].attrs["units"] for name in field_names(observations)}
    shape = observations.sizes[Y], observations.sizes[X]
    if own != source.variables or shape != source.grid_shape:
        return units
    return ranges_of(observations, channels, params.prepare.splits.train)


def seen_ranges(params: config.Params, ranges: list[Range]) -> list[Range]:
    """Return the ranges, those that are not known from observations by a look at some frames of the source."""
    if all(each.low is not None for each in ranges):
        return ranges
    try:
        frames = some_frames(params.source, params.ingest, LOOKED_AT)
    except UserError:  # the stage that reads them says so
        return ranges
    for frame in frames:
        ranges = [replace(each, whole=False).with_values(frame[each.name]) for each in ranges]
    return ranges


def check_packages(params: config.Params) -> None:
    """Raise `InputError` where a model needs a package that is not installed."""
    missing = [package for package in ("pysteps", "cv2") if importlib.util.find_spec(package) is None]
    users = [name for name, entry in params.models.items() if entry.kind in models.NEEDS_PYSTEPS]
    if missing and users:
        raise InputError(
            f"params.yaml: models.{users[0]} needs {' and '.join(missing)}: pip install 'fieldcast[advection]'"
            f" (pysteps is built from source and needs a C compiler), or take {users[0]} out of models"
        )


def check_live(params: config.Params, step_minutes: float) -> None:
    """Raise `InputError` where forecasts could not be scheduled as the section `live` asks for."""
    CycleSchedule.of(step_minutes, 0, params.live.every_minutes, params.sample.history, params.sample.horizon)
    missing, history = params.live.late_data.max_missing_frames, params.sample.history
    if missing >= history > 1:
        raise InputError(
            f"params.yaml: live.late_data.max_missing_frames is {missing}, expected less than the {history} frames of "
            "a history: its newest is never filled"
        )


def check_places(params: config.Params) -> None:
    """Raise `InputError` where the file of `live.places` cannot be read as places, wherever the grid lies."""
    if params.live.places is not None:
        read_features(params.live.places)


def check_thresholds(params: config.Params, source: SourceInfo) -> None:
    """Raise `InputError`, a line for each fault, for a threshold that no value or every value reaches."""
    faults = Faults()
    asked: tuple[tuple[str, Mapping[str, Sequence[float]]], ...] = (
        ("verify.thresholds", params.verify.thresholds),
        ("verify.storm_cells", {name: [each.at_least] for name, each in params.verify.storm_cells.items()}),
        ("live.products.exceed", params.live.products.exceed),
    )
    for key, by_variable in asked:
        for name, thresholds in by_variable.items():
            for threshold in thresholds:
                faults.of(require_threshold, f"{key}.{name}", threshold, source.variables.get(name, ""))
    faults.refuse()


def check_sizes(params: config.Params, source: SourceInfo) -> None:
    """Raise `InputError` where the grid is too small for crops, tiles or neighbourhoods, or has no units for these."""
    for key, size in (
        ("sample.crop_cells", params.sample.crop_cells),
        ("forecast.tile_cells", params.forecast.tile_cells),
    ):
        if size is not None and size > max(source.grid_shape):
            raise InputError(
                f"params.yaml: {key} is {size}, larger than the grid of {source.grid_shape[0]} x {source.grid_shape[1]}"
            )
    params.forecast.check_online(source.grid_shape, params.sample.crop_cells)
    windowed = params.verify.neighbourhoods_km and any(params.verify.thresholds.values())
    if windowed or params.verify.storm_cells:
        key = "neighbourhoods_km" if windowed else "storm_cells"
        try:
            sides = spacing_km(source.grid)
        except InputError as error:
            raise InputError(f"params.yaml: verify.{key}: {error}") from None
        if windowed and params.verify.neighbourhoods_km[0] < min(sides) / 2:
            raise InputError(
                f"params.yaml: verify.neighbourhoods_km has {params.verify.neighbourhoods_km[0]:g}, less than half "
                f"of a cell of {sides[0]:.3g} x {sides[1]:.3g} km"
            )


def check_spacing(params: config.Params, source: SourceInfo) -> None:
    """Raise `InputError` where a model needs square cells and the source has others."""
    ratio = signature_of(source.grid, [], source.step, source.time_axis.times[0]).cell_ratio
    for model, entry in params.models.items():
        check_cells(model, entry.options, ratio)


def check_leads(params: config.Params, step_minutes: float) -> None:
    """Raise `InputError` where the rule of promotion names a lead that no forecast has."""
    leads = [step_minutes * (i + 1) for i in range(params.sample.horizon)]
    for lead in params.promotion.leads_minutes or []:
        if lead not in leads:
            raise InputError(
                f"params.yaml: promotion.leads_minutes names {lead}, forecasts are for {leads[0]:g} to"
                f" {leads[-1]:g} minutes, every {step_minutes:g}"
            )


def check_regions(params: config.Params, source: SourceInfo) -> None:
    """Raise `InputError` where a region of `verify` holds no cell of the grid."""
    try:
        region_cuts(source.grid, params.verify.regions)
    except InputError as error:
        raise InputError(f"params.yaml: {error}") from None


def most_members(params: config.Params) -> int:
    """Return the members of the model that has most of them."""
    return max(getattr(entry.options, "members", None) or 1 for entry in params.models.values())


def training_cost(params: config.Params, samples: int) -> str:
    """Return the length of a training: samples, epochs, steps, and the limit in minutes if there is one."""
    steps = params.train.epochs * math.ceil(samples / params.train.batch_size)
    limit = f", at most {params.train.max_minutes:g} minutes" if params.train.max_minutes else ""
    return f"{samples} samples, {params.train.epochs} epochs, {steps} steps of {params.train.batch_size}{limit}"


def training_need(
    params: config.Params, name: str, channels: list[str] | None, step: Any, grid: tuple[int, int]
) -> str:
    """Return weights and memory of the training of a learned model; raise `InputError` where memory is too small.

    The model is built as the run would build it; without channels it cannot be.
    """
    if channels is None:
        return ""
    kind, options, sample = params.models[name].kind, params.models[name].options, params.sample
    frame = frame_of(
        options.model_dump(),
        len(channels),
        len(params.prepare.targets or channels),
        extra_channels(sample.calendar, sample.coordinates),
        sample.history,
        sample.horizon,
    )
    sizes = asdict(frame.sizes(step.total_seconds() / 60))
    cells, batch = training_cells(grid, params.sample.crop_cells), params.train.batch_size
    need = check_memory(name, kind, options, sizes, cells, batch, params.train.memory_gb)
    weights = sum(parameter.numel() for parameter in models.build(kind, options, **sizes).parameters())
    return f"{weights:,} weights, {need.of_batch(batch) / 1e9:.2g} GB to train"


def _learned(params: config.Params) -> list[str]:
    return [name for name, entry in params.models.items() if entry.kind in models.LEARNED]


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB before compression"
