"""A trained model for users of xarray: a dataset with the history goes in, a CF dataset of its forecasts comes out.

The stage `forecast`, Python (`fieldcast.load`) and MLflow (`pyfunc`) label forecasts by the functions of this module.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from einops import rearrange

from fieldcast.pipeline.config import Forecast
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.finite import OUTLIERS, refuse_infinite
from fieldcast.pipeline.datasets.schema import DECISIONS, GRID_MAPPING, TIME, X, Y, lead_times
from fieldcast.pipeline.datasets.signature import compare_signatures, signature_of
from fieldcast.pipeline.datasets.times import from_minutes
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting.checkpoint import Checkpoint, CheckpointConfig, read_checkpoint
from fieldcast.pipeline.forecasting.decisions import Decisions
from fieldcast.pipeline.forecasting.forecaster import Forecaster, best_device, forecast_members, forecaster_of

AXES = {"lat": Y, "latitude": Y, "lon": X, "longitude": X}  # names that a file gives to the rows and columns


class LoadedModel:
    """A trained model, ready to forecast; `fieldcast.load` returns it."""

    def __init__(self, checkpoint: Checkpoint, device: str | None = None, source: Path = Path()) -> None:
        self.checkpoint = checkpoint
        config = checkpoint.config
        device = device or best_device(config.kind)
        self.forecaster: Forecaster = forecaster_of(config, checkpoint.arrays, device, source)

    @classmethod
    def read(cls, folder: Path, device: str | None = None) -> LoadedModel:
        """Return the model in a checkpoint folder, on `device` or on the GPU where there is one; raise as `load`."""
        return cls(read_checkpoint(folder), device, folder)

    @property
    def config(self) -> CheckpointConfig:
        """Return what the model was made for: variables with their units, grid, step, history and horizon."""
        return self.checkpoint.config

    def __repr__(self) -> str:
        config = self.config
        step, (rows, columns) = config.step_minutes, config.signature.grid_shape
        inputs = ", ".join(f"{channel.name} [{channel.units}]" for channel in config.channels)
        return (
            f"{config.model} ({config.kind}): forecasts {', '.join(config.target_names)} up to"
            f" {config.horizon * step:g} minutes ahead, every {step:g},\nfrom {config.history} frames of {inputs} on"
            f" {rows} x {columns} cells; members: {config.members or 'none'}"
        )

    def forecast(
        self,
        history: xr.Dataset | xr.DataArray,
        init_times: Sequence[Any] | np.ndarray | None = None,
        tile_cells: int | None = None,
        overlap_cells: int = Forecast().overlap_cells,
    ) -> xr.Dataset:
        """Return forecasts `(init_time, lead_time, [member,] y, x)` in physical units, as the stage `forecast` does.

        `history` holds the model's variables `(time, y, x)` in the units and on the grid of its training, NaN where a
        value is missing; latitude and longitude are taken for y and x. `init_times` are times of the last frame of
        each history, by default the newest one of `history`. Large fields are forecast by tiles, as in the section
        `forecast` of params.yaml. A cell without any value in its history is NaN.

        Raise `InputError` for other units, another grid, another step or a frame that is not there, by its name.
        """
        observed = _observed(history, self.config)
        chosen = observed[TIME].values[-1:] if init_times is None else np.asarray(init_times, "datetime64[ns]")
        _check(observed, chosen, self.config)
        samples = _samples(observed, chosen, self.config)
        _check_values(samples, self.config)
        fields = forecast_members(self.forecaster, samples, chosen, tile_cells, overlap_cells)
        require_complete(self.config.model, fields, samples, chosen, self.config)
        grid = with_decisions(store.forecast_grid(observed, self.config.target_names), self.checkpoint)
        leads = lead_times(self.config.horizon, from_minutes(self.config.step_minutes))
        attributes = attributes_of(self.config, self.checkpoint.digest)
        values = fields_by_name(fields, self.config)
        return store.labelled_forecasts(grid, chosen, leads, attributes, values, self.config.members)


def attributes_of(config: CheckpointConfig, digest: str) -> dict[str, Any]:
    """Return the attributes of forecasts: which model made them, from which data."""
    members = {"members": config.members_are} if config.members_are else {}
    return {
        "model": config.model,
        "checkpoint_digest": digest,  # its MLflow run carries the same
        "data_digest": config.data_digest,
        **members,
    }


def with_decisions(grid: xr.Dataset, stored: Checkpoint) -> xr.Dataset:
    """Return the grid whose variables say how many members decide on an event, for verification to follow."""
    decided = Decisions.from_arrays(stored.arrays)
    if decided is None:
        return grid
    grid = grid.copy()
    for c, name in enumerate(stored.config.target_names):
        table = {"levels": decided.levels[c].tolist(), "votes": decided.votes[:, c].tolist()}
        grid[name] = grid[name].assign_attrs({DECISIONS: json.dumps(table)})
    return grid


def fields_by_name(fields: np.ndarray, config: CheckpointConfig) -> dict[str, np.ndarray]:
    """Return forecasts (b, m, horizon, c, y, x) by variable, (b, horizon, [m,] y, x)."""
    arranged = rearrange(fields, "b m f c y x -> c b f m y x")
    if config.members is None:
        arranged = arranged[:, :, :, 0]
    return dict(zip(config.target_names, arranged, strict=True))


def require_complete(
    source: Path | str,
    fields: np.ndarray,
    history: np.ndarray,
    init_times: np.ndarray,
    config: CheckpointConfig,
) -> None:
    """Raise `InputError` where forecasts (b, m, horizon, c, y, x) are no numbers in cells that `history` has seen."""
    seen = np.isfinite(history[:, :, : config.targets]).any(axis=1)[:, None, None]
    bad = seen & ~np.isfinite(fields)
    if not bad.any():
        return
    place = tuple(np.argwhere(bad)[0])
    sample, _, lead, channel, row, column = place
    raise InputError(
        f"{source}: its forecast of {config.target_names[channel]} from "
        f"{init_times[sample].astype('datetime64[m]')} is {fields[place]} at lead {lead + 1}, row {row}, "
        f"column {column}, expected a number wherever the history has one: nothing is written; {OUTLIERS} or train it "
        "again"
    )


def _observed(history: xr.Dataset | xr.DataArray, config: CheckpointConfig) -> xr.Dataset:
    """Return the variables of the model `(time, y, x)`; raise `InputError` where one, its axes or units are missing."""
    if isinstance(history, xr.DataArray):
        history = history.to_dataset(name=history.name or config.channel_names[0])
    names = {name: axis for name, axis in AXES.items() if name in history.dims and axis not in history.dims}
    history = history.rename(names)
    if GRID_MAPPING in history.data_vars:
        history = history.set_coords(GRID_MAPPING)
    for channel in config.channels:
        if channel.name not in history:
            raise InputError(
                f"history: there is no {channel.name} among {', '.join(map(str, history.data_vars))}, expected it in"
                f" {channel.units!r}: rename a variable"
            )
        array = history[channel.name]
        if set(array.dims) != {TIME, Y, X}:
            raise InputError(
                f"history: {channel.name} has dimensions {', '.join(map(str, array.dims))}, expected time, y and x:"
                " rename them, and choose one level or member"
            )
        if "units" not in array.attrs:
            raise InputError(
                f"history: {channel.name} has no units, expected {channel.units!r}: set its attribute units"
            )
    if not history.sizes[TIME]:
        raise InputError(f"history: it has no frame, expected {config.history}")
    return history[config.channel_names].transpose(TIME, Y, X)


def _check(observed: xr.Dataset, init_times: np.ndarray, config: CheckpointConfig) -> None:
    """Raise `InputError` unless units, grid and times are those of the model's training."""
    step = from_minutes(config.step_minutes)
    for init_time in init_times:
        found = signature_of(observed, config.channel_names, step, init_time)
        if difference := compare_signatures(config.signature, found):
            raise InputError(f"history: {difference}, as {config.model} was trained: bring it to that, or train anew")
        wanted = init_time - np.arange(config.history)[::-1] * step
        missing = wanted[~np.isin(wanted, observed[TIME].values)]
        if missing.size:
            raise InputError(
                f"history: there is no frame at {missing[0].astype('datetime64[s]')}, one of {config.history} up to"
                f" {init_time.astype('datetime64[s]')} every {config.step_minutes:g} minutes: add it, with NaN where"
                " nothing was observed"
            )


def _check_values(samples: np.ndarray, config: CheckpointConfig) -> None:
    """Raise `InputError` where most values (b, t, c, y, x) of a variable are far from its training: other units."""
    for c, channel in enumerate(config.channels):
        values, width = samples[:, :, c], channel.max - channel.min
        middle = float(np.nanmedian(values)) if np.isfinite(values).any() else channel.min
        if width > 0 and not channel.min - width <= middle <= channel.max + width:
            raise InputError(
                f"history: {channel.name} is about {middle:.4g}, and {channel.min:.4g} to {channel.max:.4g} "
                f"{channel.units} in the training of {config.model}: convert it to these units, or train anew"
            )


def _samples(observed: xr.Dataset, init_times: np.ndarray, config: CheckpointConfig) -> np.ndarray:
    """Return the histories (b, t, c, y, x) float32 of the init times."""
    steps = np.arange(1 - config.history, 1) * from_minutes(config.step_minutes)
    samples = []
    for init_time in init_times:
        frames = observed.sel({TIME: init_time + steps})
        for name in config.channel_names:
            refuse_infinite("history", name, frames[name].values, frames[TIME].values)
        samples.append(np.stack([frames[name].values for name in config.channel_names], axis=1))
    return np.stack(samples).astype(np.float32)
