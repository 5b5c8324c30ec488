"""A loaded model: physical histories in, physical forecasts out, whatever kind of model it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldcast import models
from fieldcast.models.layers.outputs import LearnedOptions
from fieldcast.models.layers.reference import Case
from fieldcast.pipeline.datasets.times import from_minutes, to_seconds
from fieldcast.pipeline.errors import BusyError, InputError
from fieldcast.pipeline.forecasting import calibration as calibrations
from fieldcast.pipeline.forecasting import coupling as couplings
from fieldcast.pipeline.forecasting import decisions
from fieldcast.pipeline.forecasting.checkpoint import BASE, WEIGHTS, CheckpointConfig, read_checkpoint

if TYPE_CHECKING:
    from fieldcast.pipeline.forecasting.network import Network
    from fieldcast.pipeline.forecasting.tiling import Tiles

NO_WEIGHTS = (BASE, calibrations.PREFIX, couplings.PREFIX, decisions.PREFIX)  # prefixes of other arrays of a network


class Forecaster:
    """A loaded model: physical histories in, physical forecasts out, whatever kind of model it is."""

    def __init__(
        self, config: CheckpointConfig, arrays: Mapping[str, np.ndarray], network: Network | None = None
    ) -> None:
        self.config, self.arrays, self.network = config, arrays, network
        self.calibration = calibrations.Calibration.from_arrays(arrays)
        self.decisions = decisions.Decisions.from_arrays(arrays)
        self.coupling = couplings.Coupling.from_arrays(arrays)

    def __call__(self, history: np.ndarray, init_times: np.ndarray) -> np.ndarray:
        """Return the mean over the members of `members`, (b, horizon, c_target, y, x)."""
        return mean_of_members(self.members(history, init_times))

    def members(
        self,
        history: np.ndarray,
        init_times: np.ndarray,
        tiles: Tiles | None = None,
        origin: tuple[int, int] = (0, 0),
    ) -> np.ndarray:
        """Return forecasts (b, m, horizon, c_target, y, x) of whole fields (b, t, c, y, x) with NaN at missing cells.

        Physical units; m is 1 for one forecast; `init_times` (b,) datetime64. A network sees the fields whole, or by
        `tiles`; `origin` is the first row and column of a part of the grid. Cells without any valid value in the
        history are NaN, values are inside the variables' valid range.
        """
        seen = np.isfinite(history[:, :, : self.config.targets]).any(axis=1)[:, None, None]
        if self.network is not None:
            from fieldcast.pipeline.forecasting.network import forecast_batch

            forecast = forecast_batch(self.network, history, to_seconds(init_times), tiles, origin)
        else:
            history = history[:, :, : self.config.targets]
            forecast = models.reference(self.config.kind).members(history, self._case(init_times))
        if self.calibration is not None:
            forecast = self.calibration(forecast)
        if self.coupling is not None:
            forecast = self.coupling(forecast, to_seconds(init_times), self._drift(history))
        return np.where(seen, self.inside_range(forecast), np.float32(np.nan))

    def inside_range(self, forecast: np.ndarray) -> np.ndarray:
        """Return forecasts (..., c_target, y, x) clipped to the variables' valid range."""
        targets = self.config.channels[: self.config.targets]
        low = [-np.inf if channel.valid_min is None else channel.valid_min for channel in targets]
        high = [np.inf if channel.valid_max is None else channel.valid_max for channel in targets]
        bounds = np.asarray([low, high], dtype=np.float32)[:, :, None, None]
        clipped: np.ndarray = np.clip(forecast, *bounds)
        return clipped

    def _drift(self, history: np.ndarray) -> np.ndarray:
        """Return the mean flow (b, 2) of the first target in a history (b, t, c, h, w); 0 in a fixed frame."""
        flow = None if self.network is None else self.network.guide.flow(history)
        return np.zeros((len(history), 2)) if flow is None else couplings.mean_flow(flow.numpy())

    def _case(self, init_times: np.ndarray) -> Case:
        return Case(
            init_times,
            self.config.horizon,
            from_minutes(self.config.step_minutes),
            self.config.signature.cell_km,
            models.OPTIONS[self.config.kind].model_validate(self.config.options),
            self.arrays,
        )


def mean_of_members(members: np.ndarray) -> np.ndarray:
    """Return the mean of members (b, m, ...), (b, ...): the forecast where one is asked for; of one member, itself."""
    mean: np.ndarray = members[:, 0] if members.shape[1] == 1 else members.mean(axis=1)
    return mean


def forecast_fields(
    forecaster: Forecaster, history: np.ndarray, init_times: np.ndarray, tile_cells: int | None, overlap_cells: int
) -> np.ndarray:
    """Return the mean over the members of `forecast_members`, (b, horizon, c, y, x)."""
    return mean_of_members(forecast_members(forecaster, history, init_times, tile_cells, overlap_cells))


def forecast_members(
    forecaster: Forecaster, history: np.ndarray, init_times: np.ndarray, tile_cells: int | None, overlap_cells: int
) -> np.ndarray:
    """Return forecasts (b, m, horizon, c, y, x) of whole fields (b, t, c, y, x), by tiles where a network needs them.

    Each init time is forecast on its own: networks round differently in batches of another size, and a forecast that is
    issued alone should be the hindcast's bit for bit. Tiles are of `tile_cells`, or of the training crop's size.
    """
    tiles = tiles_of(forecaster, max(history.shape[-2:]), tile_cells, overlap_cells)
    alone = ((np.ascontiguousarray(history[i : i + 1]), init_times[i : i + 1]) for i in range(len(init_times)))
    return np.concatenate([forecaster.members(*one, tiles) for one in alone])


def tiles_of(forecaster: Forecaster, cells: int, tile_cells: int | None, overlap_cells: int) -> Tiles | None:
    """Return the tiles that a network forecasts a grid of `cells` by; None where it sees all of it at once."""
    tile = tile_cells or forecaster.config.crop_cells or cells
    if forecaster.network is None or tile >= cells:
        return None
    from fieldcast.pipeline.forecasting.tiling import Tiles

    return Tiles(tile, overlap_cells)


def load(folder: Path, device: str | None = None, digest: str | None = None) -> Forecaster:
    """Return the model in a checkpoint folder, on `device` or on the GPU where there is one, ready to forecast.

    Raise `InputError` where a tensor does not fit, `DamagedError` where a byte has changed, and `BusyError` where the
    folder is not the one of `digest` any more: it was trained again.
    """
    stored = read_checkpoint(folder)
    if digest is not None and stored.digest != digest:
        raise BusyError(f"{folder}: was trained again just now (digest {stored.digest}, expected {digest}): try again")
    return forecaster_of(stored.config, stored.arrays, device or best_device(stored.config.kind), folder / WEIGHTS)


def forecaster_of(
    config: CheckpointConfig, arrays: Mapping[str, np.ndarray], device: str = "cpu", source: Path = Path(WEIGHTS)
) -> Forecaster:
    """Return the model of a checkpoint's configuration and arrays; `source` is what an `InputError` names."""
    if config.kind in models.REFERENCES:
        return Forecaster(config, arrays)
    kept = {name: array for name, array in arrays.items() if name.startswith(NO_WEIGHTS)}
    weights = {name: array for name, array in arrays.items() if name not in kept}
    of_base = {name.removeprefix(BASE): array for name, array in kept.items() if name.startswith(BASE)}
    network = build_network(config, weights["normaliser.baseline"], weights["normaliser.scale"], of_base)
    _fill(network, weights, source)
    return Forecaster(config, kept, network.eval().to(device))


@lru_cache(maxsize=1)
def load_cached(folder: Path, digest: str) -> Forecaster:
    """Return the model in a checkpoint folder, on the GPU if there is one, the same object in the next call.

    `digest` is that of the folder: another checkpoint in its place is not loaded under it.
    """
    return load(folder, None, digest)


def best_device(kind: str) -> str:
    """Return the GPU for a learned model where there is one, else 'cpu'."""
    if kind not in models.LEARNED:
        return "cpu"
    import torch  # seconds to import; references do without

    return "cuda" if torch.cuda.is_available() else "cpu"


def build_network(
    config: CheckpointConfig,
    baseline: np.ndarray,
    scale: np.ndarray,
    base_arrays: Mapping[str, np.ndarray] | None = None,
) -> Network:
    """Return the untrained network that `config` asks for, with its statistics and the arrays of its base."""
    from fieldcast.models.layers.flow_correction import FlowCorrection
    from fieldcast.pipeline.forecasting.base import Guide
    from fieldcast.pipeline.forecasting.network import Network
    from fieldcast.pipeline.forecasting.normaliser import Normaliser

    options = models.OPTIONS[config.kind].model_validate(config.options)
    assert isinstance(options, LearnedOptions)  # build takes no other
    model = models.build(config.kind, options, **asdict(config.sizes))
    normaliser = Normaliser(baseline, scale, config.channels)
    guide = Guide(
        kinds=config.bases,
        moving=config.frame.moving,
        motion=options.motion,
        targets=config.targets,
        horizon=config.horizon,
        step=from_minutes(config.step_minutes),
        spacing_km=config.signature.cell_km,
        arrays=base_arrays or {},
    )
    return Network(
        model,
        normaliser,
        round(60 * config.step_minutes),
        options,
        frame=config.frame,
        guide=guide,
        correction=FlowCorrection(config.history * len(config.channels)) if options.correct_flow else None,
        calendar=config.calendar,
        grid=config.signature.grid_shape if config.coordinates else None,
    )


def _fill(network: Network, arrays: Mapping[str, np.ndarray], path: Path) -> None:
    import torch

    expected = network.state_dict()
    shape_of = partial(_shape, expected)
    wrong = [name for name in expected if name not in arrays] + [name for name in arrays if name not in expected]
    wrong += [name for name in expected if name in arrays and arrays[name].shape != shape_of(name)]
    if wrong:
        raise InputError(f"{path}: tensor {wrong[0]!r} is missing, unknown or of another shape; train the model again")
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})


def _shape(state: Mapping[str, Any], name: str) -> tuple[int, ...]:
    return tuple(state[name].shape)
