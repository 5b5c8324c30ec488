"""A trained model as a folder: `config.json`, `model.safetensors`, `card.md`. No pickle; nothing else is needed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save

import models
from models.outputs import OutputOptions
from pipeline.calibration import PREFIX, Calibration
from pipeline.contract import cell_km, contract_digest
from pipeline.costs import Costs
from pipeline.schema import InputError, X, Y

if TYPE_CHECKING:
    from pipeline.network import Network

FORMAT = 4
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "card.md"


@dataclass(frozen=True)
class Description:
    """What a checkpoint is and what it was made for."""

    model: str  # its name in the comparison
    kind: str  # which code in models/ it is
    options: dict[str, Any]
    history: int
    horizon: int
    step_minutes: int
    channels: list[dict[str, Any]]  # targets first: name, units, transform, floor, valid range, statistics
    targets: int  # how many of the channels are forecast
    anomalies: bool
    contract: dict[str, Any]  # of the training data: units, grid and time axis
    crop_cells: int | None  # what the network saw at once
    data_digest: str  # of the prepared data
    calendar: bool = False  # hour of the day and day of the year as four more inputs
    coordinates: bool = False  # row and column as two more inputs
    format: int = field(default=FORMAT)

    @property
    def target_names(self) -> list[str]:
        """Return the names of the forecast variables."""
        return [channel["name"] for channel in self.channels[: self.targets]]

    @property
    def channels_in(self) -> int:
        """Return how many inputs its model has: the channels, and what it is shown of time and place."""
        return len(self.channels) + extra_channels(self.calendar, self.coordinates)

    @property
    def members(self) -> int | None:
        """Return how many members its forecasts have; None for one forecast."""
        return self.options.get("members")

    @property
    def members_are(self) -> str | None:
        """Return what its members are: 'quantiles' of each cell, fields of an 'ensemble', or None."""
        return None if self.members is None else self.options.get("output", "ensemble")

    @property
    def contract_digest(self) -> str:
        """Return the digest of the training data's contract."""
        return contract_digest(self.contract)


@dataclass(frozen=True)
class Fitted:
    """What a training gives: arrays, facts for the model card, and costs, which no two trainings have alike."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    costs: Costs = field(default_factory=Costs)


class Forecaster:
    """A loaded model: physical histories in, physical forecasts out, whatever kind of model it is."""

    def __init__(
        self, description: Description, arrays: Mapping[str, np.ndarray], network: Network | None = None
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
        seconds = init_times.astype("datetime64[s]").astype(np.int64)
        if self.network is not None:
            from pipeline.network import forecast_batch

            forecast = forecast_batch(self.network, history, seconds, origin)
        elif self.description.kind == "steps":
            forecast = self._steps(history, seconds)
        else:
            forecast = self._reference(history, init_times)[:, None]
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

    def _steps(self, history: np.ndarray, seconds: np.ndarray) -> np.ndarray:
        from models.steps.forecast import forecast as steps
        from models.steps.options import StepsOptions

        return steps(
            history[:, :, : self.description.targets],
            self.description.horizon,
            seconds=seconds,
            spacing_km=cell_km(self.description.contract),
            step_minutes=self.description.step_minutes,
            options=StepsOptions.model_validate(self.description.options),
        )

    def _reference(self, history: np.ndarray, init_times: np.ndarray) -> np.ndarray:
        name, horizon = self.description.kind, self.description.horizon
        history = history[:, :, : self.description.targets]
        step = np.timedelta64(self.description.step_minutes, "m")
        valid_times = init_times[:, None] + step * np.arange(1, horizon + 1)
        if name == "climatology":
            from models.climatology.forecast import forecast as climatology

            return climatology(climatology_at(self.arrays["climatology"], valid_times))
        if name == "damped_persistence":
            from models.damped_persistence.forecast import forecast as damped_persistence

            return damped_persistence(
                history,
                horizon,
                climatology_at_init=climatology_at(self.arrays["climatology"], init_times[:, None])[:, 0],
                climatology_at_valid=climatology_at(self.arrays["climatology"], valid_times),
                damping=self.arrays["damping"],
            )
        if name == "advection":
            from models.advection.forecast import forecast as advection

            return advection(history, horizon, **self.description.options)
        from models.persistence.forecast import forecast as persistence

        return persistence(history, horizon)


def extra_channels(calendar: bool, coordinates: bool) -> int:
    """Return how many inputs a model has besides the variables."""
    return 4 * calendar + 2 * coordinates


def mean_of_members(members: np.ndarray) -> np.ndarray:
    """Return the mean of members (b, m, ...), (b, ...): the forecast where one is asked for; of one member, itself."""
    mean: np.ndarray = members[:, 0] if members.shape[1] == 1 else members.mean(axis=1)
    return mean


def climatology_at(climatology: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the climatology (24 or 1, c, h, w) at `times` (b, n), (b, n, c, h, w), by UTC hour if it has 24."""
    hours = times.astype("datetime64[h]").astype(np.int64) % climatology.shape[0]
    result: np.ndarray = climatology[hours]
    return result


def save_checkpoint(folder: Path, description: Description, arrays: Mapping[str, np.ndarray], card: str) -> None:
    """Write a checkpoint folder, complete or not at all."""
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    contiguous = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
    contents = {
        CONFIG: (json.dumps(asdict(description), indent=2) + "\n").encode(),
        WEIGHTS: save(contiguous),
        CARD: card.encode(),
    }
    for name, content in contents.items():
        with (temporary / name).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def card_of(description: Description, facts: dict[str, Any]) -> str:
    """Return the model card: what the checkpoint forecasts, from what, and how it was made."""
    lead = description.horizon * description.step_minutes
    rows, columns = (description.contract[axis]["cells"] for axis in (Y, X))
    rows = {
        "forecasts": ", ".join(
            f"{channel['name']} [{channel['units']}]" for channel in description.channels[: description.targets]
        ),
        "from": f"{description.history} frames, one every {description.step_minutes} minutes",
        "leads": f"{description.step_minutes} to {lead} minutes",
        "trained on": f"{rows} x {columns} cells, data {description.data_digest}",
        "options": json.dumps(description.options),
        **facts,
    }
    lines = "\n".join(f"| {key} | {value} |" for key, value in rows.items())
    return f"# {description.model}\n\n| | |\n|---|---|\n{lines}\n"


def describe(folder: Path) -> Description:
    """Return the description in a checkpoint folder; raise `InputError` when it is not one of ours."""
    path = folder / CONFIG
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a checkpoint folder written by the train stage") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON: {error}; train the model again") from None
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: format is {content.get('format')!r}, expected {FORMAT}; train the model again")
    unknown = sorted(set(content) ^ set(Description.__dataclass_fields__))
    if unknown:
        raise InputError(f"{path}: unknown or missing keys {unknown}; train the model again")
    return Description(**content)


def load(folder: Path, device: str = "cpu") -> Forecaster:
    """Return the model in a checkpoint folder, ready to forecast; raise `InputError` where a tensor does not fit."""
    return forecaster_of(describe(folder), load_file(folder / WEIGHTS), device, folder / WEIGHTS)


def forecaster_of(
    description: Description, arrays: Mapping[str, np.ndarray], device: str = "cpu", source: Path = Path(WEIGHTS)
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


def build_network(description: Description, baseline: np.ndarray, scale: np.ndarray) -> Network:
    """Return the untrained network that `description` asks for, with its statistics."""
    from pipeline.network import Network
    from pipeline.normalise import Normaliser

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
