"""A loaded model: physical histories in, physical forecasts out, whatever kind of model it is."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file

from fieldcast import models
from fieldcast.models.layers.outputs import OutputOptions
from fieldcast.models.layers.reference import Case
from fieldcast.pipeline.datasets.schema import X, Y
from fieldcast.pipeline.datasets.signature import cell_km
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting.calibration import PREFIX, Calibration
from fieldcast.pipeline.forecasting.checkpoint import WEIGHTS, CheckpointConfig, describe

if TYPE_CHECKING:
    from fieldcast.pipeline.forecasting.network import Network


class Forecaster:
    """A loaded model: physical histories in, physical forecasts out, whatever kind of model it is."""

    def __init__(
        self, description: CheckpointConfig, arrays: Mapping[str, np.ndarray], network: Network | None = None
    ) -> None:
        self.description, self.arrays, self.network = description, arrays, network
        self.calibration = Calibration.from_arrays(arrays)

    def __call__(self, history: np.ndarray, init_times: np.ndarray, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Return the mean over the members of `members`, (b, horizon, c_target, h, w)."""
        return mean_of_members(self.members(history, init_times, origin))

    def members(self, history: np.ndarray, init_times: np.ndarray, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Return forecasts (b, m, horizon, c_target, h, w) of a history (b, t, c, h, w) with NaN at missing cells.

        Physical units; m is 1 for one forecast; `init_times` (b,) datetime64; `origin` is the first row and column of
        the tile in the grid. Cells without any valid value in the history are NaN, values lie inside the variables'
        valid range.
        """
        seen = np.isfinite(history[:, :, : self.description.targets]).any(axis=1)[:, None, None]
        if self.network is not None:
            from fieldcast.pipeline.forecasting.network import forecast_batch

            seconds = init_times.astype("datetime64[s]").astype(np.int64)
            forecast = forecast_batch(self.network, history, seconds, origin)
        else:
            history = history[:, :, : self.description.targets]
            forecast = models.reference(self.description.kind).members(history, self._case(init_times))
        if self.calibration is not None:
            forecast = self.calibration(forecast)
        return np.where(seen, self._inside_range(forecast), np.float32(np.nan))

    def _inside_range(self, forecast: np.ndarray) -> np.ndarray:
        bounds = [
            [
                -np.inf if channel["valid_min"] is None else channel["valid_min"]
                for channel in self.description.channels
            ],
            [np.inf if channel["valid_max"] is None else channel["valid_max"] for channel in self.description.channels],
        ]
        low, high = np.asarray(bounds, dtype=np.float32)[:, : self.description.targets, None, None]
        clipped: np.ndarray = np.clip(forecast, low, high)
        return clipped

    def _case(self, init_times: np.ndarray) -> Case:
        own = self.description
        return Case(
            init_times,
            own.horizon,
            np.timedelta64(own.step_minutes, "m"),
            cell_km(own.contract),
            models.OPTIONS[own.kind].model_validate(own.options),
            self.arrays,
        )


def mean_of_members(members: np.ndarray) -> np.ndarray:
    """Return the mean of members (b, m, ...), (b, ...): the forecast where one is asked for; of one member, itself."""
    mean: np.ndarray = members[:, 0] if members.shape[1] == 1 else members.mean(axis=1)
    return mean


def load(folder: Path, device: str = "cpu") -> Forecaster:
    """Return the model in a checkpoint folder, ready to forecast; raise `InputError` where a tensor does not fit."""
    return forecaster_of(describe(folder), load_file(folder / WEIGHTS), device, folder / WEIGHTS)


def forecaster_of(
    description: CheckpointConfig, arrays: Mapping[str, np.ndarray], device: str = "cpu", source: Path = Path(WEIGHTS)
) -> Forecaster:
    """Return the model of a checkpoint's description and arrays; `source` is what an `InputError` names."""
    if description.kind in models.REFERENCES:
        return Forecaster(description, arrays)
    calibration = {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
    weights = {name: array for name, array in arrays.items() if name not in calibration}
    network = build_network(description, weights["normaliser.baseline"], weights["normaliser.scale"])
    _fill(network, weights, source)
    return Forecaster(description, calibration, network.eval().to(device))


@lru_cache(maxsize=1)
def load_cached(folder: Path, digest: str) -> Forecaster:
    """Return the model in a checkpoint folder, on the GPU if there is one, the same object in the next call.

    `digest` is that of the folder, so that another checkpoint in its place is loaded anew.
    """
    return load(folder, best_device(describe(folder).kind))


def best_device(kind: str) -> str:
    """Return the GPU for a learned model where there is one, else 'cpu'."""
    if kind not in models.LEARNED:
        return "cpu"
    import torch  # seconds to import; references do without

    return "cuda" if torch.cuda.is_available() else "cpu"


def build_network(description: CheckpointConfig, baseline: np.ndarray, scale: np.ndarray) -> Network:
    """Return the untrained network that `description` asks for, with its statistics."""
    from fieldcast.pipeline.forecasting.network import Network
    from fieldcast.pipeline.forecasting.normaliser import Normaliser

    options = models.OPTIONS[description.kind].model_validate(description.options)
    model = models.build(
        description.kind,
        options,
        channels_in=description.channels_in,
        channels_out=description.targets,
        history=description.history,
        horizon=description.horizon,
        step_minutes=description.step_minutes,
    )
    assert isinstance(options, OutputOptions)  # build takes no other
    normaliser = Normaliser(baseline, scale, description.channels)
    grid = (description.contract[Y]["cells"], description.contract[X]["cells"]) if description.coordinates else None
    return Network(model, normaliser, 60 * description.step_minutes, options, calendar=description.calendar, grid=grid)


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
