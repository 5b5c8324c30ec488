"""Attribution of a forecast to the cells of its history, as numbers and as a picture.

Of one init time, one lead and a few cells. The map of a learned model is its gradient times what it saw, without signs,
or for a video transformer the rollout of its attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fieldcast import models
from fieldcast.models.layers.frame import inputs, outputs
from fieldcast.models.video_transformer.attention.inspect.rollout import look_back, obstacle
from fieldcast.models.video_transformer.options import VideoTransformerOptions
from fieldcast.pipeline.config import Forecast
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import sample_steps
from fieldcast.pipeline.datasets.labels import readable_units
from fieldcast.pipeline.datasets.paths import OBSERVATIONS
from fieldcast.pipeline.datasets.schema import TIME, X, Y
from fieldcast.pipeline.datasets.signature import check_signature
from fieldcast.pipeline.datasets.times import to_numpy, to_seconds
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.explain.sensitivity import contribution
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.forecasting.forecaster import Forecaster, best_device, forecast_fields, load
from fieldcast.pipeline.forecasting.network import Given, Network

How = Literal["gradient", "rollout"]

AROUND = 2  # cells to each side of the chosen one that are explained with it: 5 x 5 together


@dataclass(frozen=True)
class Question:
    """Forecast to be explained: that from `init_time` of one cell, the strongest where none is named."""

    init_time: np.datetime64
    lead_minutes: int
    cell: tuple[int, int] | None = None  # row and column
    how: How = "gradient"


@dataclass(frozen=True)
class Explanation:
    """A forecast with a map of where it comes from; rows and columns are those of the whole grid."""

    model: str
    question: Question
    cell: tuple[int, int]  # row and column
    history: xr.DataArray  # (time, y, x) of the first target
    forecast: xr.DataArray  # (y, x) at the lead
    observed: xr.DataArray | None  # (y, x) at the same time, where the store has it
    shares: np.ndarray  # (time, y, x): of each history cell in the forecast, 1 together
    seams: float | None  # see `seam_ratio`; None where the model has no patches

    def frames(self) -> list[dict[str, float]]:
        """Return share, and row and column of the centre of the map, of every history frame; minutes from init_time."""
        rows, columns = np.indices(self.shares.shape[1:])
        minutes = (self.history[TIME].values - self.question.init_time) / np.timedelta64(1, "m")
        table = []
        for minute, shares in zip(minutes, self.shares, strict=True):
            total = float(shares.sum())
            centre = [float((shares * axis).sum() / total) if total else np.nan for axis in (rows, columns)]
            table.append({"minutes": float(minute), "share": total, "row": centre[0], "column": centre[1]})
        return table

    def text(self) -> str:
        """Return what the picture shows as lines to print."""
        units = readable_units(str(self.history.attrs.get("units", "")))
        row, column = self.cell
        lines = [
            f"{self.model}, row {row}, column {column}, {_minute(_valid_time(self.question))} UTC: "
            f"{float(self.forecast[row, column]):.3g} {units}",
            "",
            "minutes  share    row  column  cells away   (centre of the frame's share)",
        ]
        for frame, values in zip(self.frames(), self.history.values, strict=True):
            if frame["share"] == 0:  # which has no centre
                lines.append(f"{frame['minutes']:7.0f}  {'   0%' if np.isfinite(values).any() else 'missing'}")
                continue
            away = float(np.hypot(frame["row"] - row, frame["column"] - column))
            lines.append(
                f"{frame['minutes']:7.0f}  {frame['share']:5.0%}  {frame['row']:5.1f}  {frame['column']:6.1f}"
                f"  {away:10.1f}"
            )
        if self.seams is not None:
            lines += ["", f"squared steps across patch borders are {self.seams:.2f} times those inside patches"]
        return "\n".join(lines) + "\n"


def question_of(at: datetime, lead_minutes: int, cell: str | None, how: How) -> Question:
    """Return the question of a user, who writes the cell as ROW,COLUMN or leaves it out."""
    if cell is None:
        return Question(to_numpy(at), lead_minutes, None, how)
    try:
        row, column = (int(part) for part in cell.split(","))
    except ValueError:
        raise InputError(f"--cell is '{cell}', expected ROW,COLUMN such as 12,40") from None
    return Question(to_numpy(at), lead_minutes, (row, column), how)


def explain(folder: Path, question: Question, observations: Path = OBSERVATIONS) -> Explanation:
    """Return the explanation of a forecast of the learned model in a checkpoint folder.

    Raise `InputError` for a checkpoint, an init time, a lead or a cell that cannot be explained.
    """
    config = checkpoint.read_config(folder)
    lead = _check_model(folder, config, question)
    with store.open_observations(observations) as observed:
        names = config.channel_names
        last = _check_data(observations, observed, config, question)
        cut = observed[names].isel({TIME: sample_steps(last, config.history)}).load()
        later = observed[names[0]].sel({TIME: observed[TIME].isin(_valid_time(question))}).load()
    history = np.stack([cut[name].values for name in names], axis=1)[None]
    if not np.isfinite(history[:, :, : config.targets]).any():
        raise InputError(f"{observations}: no valid value in the history of {question.init_time}; take another --at")
    forecaster = load(folder, best_device(config.kind))
    fields = forecast_fields(forecaster, history, np.array([question.init_time]), None, Forecast().overlap_cells)
    forecast = cut[names[0]].isel({TIME: -1}, drop=True).copy(data=fields[0, lead, 0])
    cell = question.cell or _strongest(fields[0, lead, 0])
    shares, normalised = _shares(forecaster, history, question, lead, cell)
    patch = config.options.get("patch")
    return Explanation(
        config.model,
        question,
        cell,
        cut[names[0]],
        forecast,
        later.isel({TIME: 0}) if later.sizes[TIME] else None,
        shares,
        seam_ratio(normalised, patch) if patch else None,
    )


def seam_ratio(fields: np.ndarray, patch: int) -> float | None:
    """Return the mean squared step between neighbours in different patches by that inside patches, of (..., y, x).

    1 for a field that knows nothing of patches; None where there is no step of one kind, or no step inside patches.
    """
    across: list[np.ndarray] = []
    within: list[np.ndarray] = []
    for axis in (-2, -1):
        steps = np.moveaxis(np.diff(fields, axis=axis), axis, 0) ** 2
        border = (np.arange(len(steps)) + 1) % patch == 0
        across.append(steps[border].ravel())
        within.append(steps[~border].ravel())
    between, inside = np.concatenate(across), np.concatenate(within)
    if not between.size or not inside.size or not inside.mean():
        return None
    return float(between.mean() / inside.mean())


def _check_model(folder: Path, config: CheckpointConfig, question: Question) -> int:
    """Return the position of the lead."""
    if config.kind not in models.LEARNED:
        raise InputError(
            f"{folder}: {config.model} is a {config.kind}, which learns nothing that could be explained; "
            f"expected a {', '.join(models.LEARNED)}"
        )
    if question.how == "rollout" and (problem := _no_rollout(config)):
        raise InputError(f"--how is rollout, but {problem} in {config.model}: take gradient")
    position, rest = divmod(60 * question.lead_minutes, round(60 * config.step_minutes))
    if rest or not 1 <= position <= config.horizon:
        raise InputError(
            f"--lead is {question.lead_minutes}, {config.model} forecasts {config.step_minutes:g} to "
            f"{config.step_minutes * config.horizon:g} minutes, every {config.step_minutes:g}"
        )
    return position - 1


def _no_rollout(config: CheckpointConfig) -> str | None:
    options = models.OPTIONS[config.kind].model_validate(config.options)
    if config.frame.moving:
        return "rollout needs frame: fixed, got moving"
    if not isinstance(options, VideoTransformerOptions):
        return f"rollout needs a video_transformer, got a {config.kind}"
    return obstacle(options)


def _check_data(path: Path, observed: xr.Dataset, config: CheckpointConfig, question: Question) -> int:
    """Return the position of the last frame of the history."""
    check_signature(path, observed, config.signature, config.model)
    times = observed[TIME].values
    last = int(np.searchsorted(times, question.init_time))
    if last == len(times) or times[last] != question.init_time or last + 1 < config.history:
        first = times[min(config.history, len(times)) - 1]
        raise InputError(
            f"--at is {_minute(question.init_time)}, {path} has init times from {_minute(first)} to "
            f"{_minute(times[-1])}, every {config.step_minutes:g} minutes"
        )
    shape = observed.sizes[Y], observed.sizes[X]
    if question.cell is not None and not all(0 <= at < size for at, size in zip(question.cell, shape, strict=True)):
        raise InputError(
            f"--cell is {question.cell[0]},{question.cell[1]}, the grid has rows 0 to {shape[0] - 1} and columns 0 to "
            f"{shape[1] - 1}"
        )
    return last


def _shares(
    forecaster: Forecaster, history: np.ndarray, question: Question, lead: int, cell: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the map (t, y, x), 0 outside what the network saw, and the normalised forecast fields (..., h, w)."""
    network = forecaster.network
    assert network is not None  # learned models have one
    rows, columns = (
        _around(at, size, forecaster.config.crop_cells or size)
        for at, size in zip(cell, history.shape[-2:], strict=True)
    )
    region = torch.zeros(history.shape[-2:], dtype=torch.bool)
    region[tuple(slice(max(at - AROUND, 0), at + AROUND + 1) for at in cell)] = True
    device = next(network.parameters()).device
    seen = torch.from_numpy(history[..., rows, columns]).to(device)
    seconds = to_seconds(question.init_time).reshape(1)
    origin = torch.tensor([[rows.start, columns.start]], device=device)
    inside = region[rows, columns].to(device)
    with torch.no_grad():
        given = network.given(seen, torch.from_numpy(seconds).to(device), origin, None, None)
        forecast = _forecast(network, given, given.z)
    if question.how == "rollout":
        shown = inputs(network.frame, given.z, given.planes, given.paths, given.base)
        part = look_back(network.model, shown, lead, inside)  # type: ignore[arg-type]  # checked by its kind
    else:
        nothing = _nothing(network, given.z, torch.from_numpy(seconds).to(device), origin)
        part = contribution(lambda z, _: _forecast(network, given, z), given.z, lead, inside, background=nothing).abs()
    shares = np.zeros((history.shape[1], *history.shape[-2:]), dtype=np.float64)
    shares[:, rows, columns] = part.cpu().numpy()
    return shares / (shares.sum() or 1.0), forecast.cpu().numpy()


def _forecast(network: Network, given: Given, z: Tensor) -> Tensor:
    """Return the normalised forecast of a normalised history; what else the model is given stays as it is."""
    shown = inputs(network.frame, z, given.planes, given.paths, given.base)
    output: Tensor = network.model(shown, given.noise)
    return outputs(network.frame, output, shown, given.paths, given.base)


def _nothing(network: Network, z: Tensor, seconds: Tensor, origin: Tensor) -> Tensor:
    """Return a normalised history that says nothing, (t, c, h, w): no rain; the mean where 0 has no meaning."""
    steps = torch.arange(1 - z.shape[1], 1, device=z.device) * network.step_seconds
    dry = network.normaliser.normalise(torch.zeros_like(z), seconds[:, None] + steps, origin)
    has_zero = [channel.transform != "identity" for channel in network.normaliser.channels]
    return torch.where(torch.tensor(has_zero, device=z.device)[:, None, None], dry, 0.0)[0]


def _around(at: int, size: int, crop: int) -> slice:
    """Return the `crop` cells, or all, around the cell `at` of an axis."""
    start = min(max(at - crop // 2, 0), max(size - crop, 0))
    return slice(start, min(start + crop, size))


def _strongest(field: np.ndarray) -> tuple[int, int]:
    row, column = np.unravel_index(np.nanargmax(field), field.shape)
    return int(row), int(column)


def _valid_time(question: Question) -> np.datetime64:
    return question.init_time + np.timedelta64(question.lead_minutes, "m")


def _minute(time: np.datetime64) -> str:
    return str(time.astype("datetime64[m]"))
