"""A trained model as a folder: `config.json`, `model.safetensors`, `card.md` and the manifest of their checksums.

No pickle; nothing else is needed. Whoever reads it gets the bytes that the manifest lists, or an error.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fieldcast import models
from fieldcast.models.layers.sizes import Frame, Sizes
from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.atomic import replacing
from fieldcast.pipeline.datasets.finite import OUTLIERS, require_finite
from fieldcast.pipeline.datasets.signature import Channel, DataSignature
from fieldcast.pipeline.datasets.store import digest_of
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.forecasting.costs import Costs

FORMAT = 8
BASE = "base."  # prefix of the arrays of a network's base, base.<kind>.<name>
TRIES = 3  # of reading a checkpoint that a training is just replacing
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "card.md"


@dataclass(frozen=True)
class CheckpointConfig:
    """Model, data and sizes that a checkpoint was made for."""

    model: str  # its name in the comparison
    kind: str  # which code in models/ it is
    options: dict[str, Any]
    history: int
    horizon: int
    step_minutes: int | float
    channels: tuple[Channel, ...]  # targets first
    targets: int  # how many of the channels are forecast
    anomalies: bool
    signature: DataSignature  # of the training data
    crop_cells: int | None  # what the network saw at once
    data_digest: str  # of the data that it learned from
    calendar: bool = False  # hour of the day and day of the year as four more inputs
    coordinates: bool = False  # row and column as two more inputs
    chosen_bases: tuple[str, ...] = ()  # of a network with base: auto, the reference at each lead
    format: int = field(default=FORMAT)

    @property
    def target_names(self) -> list[str]:
        """Return the names of the forecast variables."""
        return self.channel_names[: self.targets]

    @property
    def channel_names(self) -> list[str]:
        """Return the names of all variables that its model reads, targets first."""
        return [channel.name for channel in self.channels]

    @property
    def bases(self) -> tuple[str, ...]:
        """Return the reference at each lead that its network changes; () where that is the history's own mixture."""
        base = self.options.get("base", "history")
        if base == "auto":
            return self.chosen_bases
        return () if base == "history" else (base,) * self.horizon

    @property
    def frame(self) -> Frame:
        """Return the frame that its network works in, and whether it has a base."""
        planes = extra_channels(self.calendar, self.coordinates)
        return frame_of(self.options, len(self.channels), self.targets, planes, self.history, self.horizon)

    @property
    def sizes(self) -> Sizes:
        """Return the sizes of its network, which may see each channel twice, and what tells time and place."""
        return self.frame.sizes(self.step_minutes)

    @property
    def members(self) -> int | None:
        """Return how many members its forecasts have; None for one forecast."""
        return self.options.get("members")

    @property
    def members_are(self) -> str | None:
        """Return what its members are: 'quantiles' of each cell, fields of an 'ensemble', or None."""
        coupled = self.options.get("coupling", "none") != "none"
        return None if self.members is None else "ensemble" if coupled else self.options.get("output", "ensemble")

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> CheckpointConfig:
        """Return the configuration that `asdict` gave; raise `TypeError` where a key is unknown or missing."""
        channels = tuple(Channel(**channel) for channel in content.get("channels", ()))
        signature = DataSignature.from_dict(content.get("signature", {}))
        bases = tuple(content.get("chosen_bases", ()))
        return cls(**{**content, "channels": channels, "signature": signature, "chosen_bases": bases})


@dataclass(frozen=True)
class Checkpoint:
    """The content of a checkpoint folder, read once: all three are of the same bytes."""

    config: CheckpointConfig
    arrays: dict[str, np.ndarray]
    digest: str  # of the folder, as `store.directory_digest` gives it


@dataclass(frozen=True)
class Fitted:
    """Result of a training: arrays, facts for the model card, and costs, which no two trainings have alike."""

    arrays: dict[str, np.ndarray]
    facts: dict[str, Any]
    costs: Costs = field(default_factory=Costs)


def frame_of(
    options: Mapping[str, Any], variables: int, targets: int, planes: int, history: int, horizon: int
) -> Frame:
    """Return the frame that a model's `options` ask for; fixed, without a base, for a reference."""
    moving, based = options.get("frame") == "moving", options.get("base", "history") != "history"
    return Frame(moving, based, variables, targets, planes, history, horizon)


def extra_channels(calendar: bool, coordinates: bool) -> int:
    """Return how many inputs a model has besides the variables."""
    return 4 * calendar + 2 * coordinates


def save_checkpoint(folder: Path, config: CheckpointConfig, arrays: Mapping[str, np.ndarray], card: str) -> None:
    """Write a checkpoint folder, complete or not at all; raise `InputError` where a weight is not finite."""
    for name, array in arrays.items():
        fix = f"lower train.learning_rate, or {OUTLIERS}" if config.kind in models.LEARNED else OUTLIERS
        require_finite(folder, f"array '{name}'", array, fix)
    contiguous = {name: np.asarray(array, order="C") for name, array in sorted(arrays.items())}
    with replacing(folder) as partial:
        partial.mkdir()
        (partial / CONFIG).write_text(json.dumps(asdict(config), indent=2) + "\n")
        (partial / WEIGHTS).write_bytes(save(contiguous))
        (partial / CARD).write_text(card, "utf-8")
        manifest.write(partial)


def model_card(config: CheckpointConfig, facts: dict[str, Any]) -> str:
    """Return the model card: what the checkpoint forecasts, from what, and how it was made."""
    lead = config.horizon * config.step_minutes
    rows, columns = config.signature.grid_shape
    facts = {
        "forecasts": ", ".join(f"{channel.name} [{channel.units}]" for channel in config.channels[: config.targets]),
        "from": f"{config.history} frames, one every {config.step_minutes:g} minutes",
        "leads": f"{config.step_minutes:g} to {lead:g} minutes",
        "trained on": f"{rows} x {columns} cells, data {config.data_digest}",
        "options": json.dumps(config.options),
        **facts,
    }
    lines = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    return f"# {config.model}\n\n| | |\n|---|---|\n{lines}\n"


def read_config(folder: Path) -> CheckpointConfig:
    """Return the configuration in a checkpoint folder.

    Raise `InputError` when it is not one of ours, `DamagedError` when its bytes have changed.
    """
    return _parsed(folder / CONFIG, _read_files(folder, only=(CONFIG,))[CONFIG])


def read_checkpoint(folder: Path) -> Checkpoint:
    """Return configuration, arrays and digest of a checkpoint folder, each file read once; raise as `read_config`."""
    files = _read_files(folder)
    for name in (CONFIG, WEIGHTS):
        if name not in files:
            raise DamagedError(f"{folder / name}: is missing: {manifest.REMEDY}")
    try:
        arrays = load(files[WEIGHTS])
    except SafetensorError as error:
        raise InputError(f"{folder / WEIGHTS}: {error}; train the model again") from None
    return Checkpoint(_parsed(folder / CONFIG, files[CONFIG]), arrays, digest_of(files))


def _read_files(folder: Path, only: tuple[str, ...] = ()) -> dict[str, bytes]:
    """Return the files of a checkpoint, all by default, as its manifest lists them."""
    for _ in range(TRIES - 1):
        before = _manifest(folder)
        try:
            return _read_listed(folder, before, only)
        except DamagedError:
            if _manifest(folder) == before:
                raise
    return _read_listed(folder, _manifest(folder), only)


def _manifest(folder: Path) -> bytes:
    """Return the text of a checkpoint's manifest; raise `InputError` where the folder is no checkpoint of today's."""
    path = folder / manifest.MANIFEST
    if not path.is_file():
        if not (folder / CONFIG).is_file():
            raise InputError(
                f"{folder / CONFIG}: no such file; expected a checkpoint folder written by the train stage"
            )
        _parsed(folder / CONFIG, (folder / CONFIG).read_bytes())
    return manifest.read_bytes(path, manifest.REMEDY)


def _read_listed(folder: Path, text: bytes, only: tuple[str, ...]) -> dict[str, bytes]:
    files = manifest.files_of(folder / manifest.MANIFEST, text)
    contents = {manifest.MANIFEST: text}
    for name in only or files:
        contents[name] = manifest.read_bytes(folder / name, manifest.REMEDY)
        manifest.require(folder / name, contents[name], files.get(name, {}), manifest.REMEDY)
    return contents


def _parsed(path: Path, text: bytes) -> CheckpointConfig:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}; train the model again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: {type(content).__name__} in place of a configuration; train the model again")
    if content.get("format") != FORMAT:
        raise InputError(f"{path}: format is {content.get('format')!r}, expected {FORMAT}; train the model again")
    unknown = sorted(set(content) ^ set(CheckpointConfig.__dataclass_fields__))
    if unknown:
        raise InputError(f"{path}: unknown or missing keys {unknown}; train the model again")
    try:
        return _checked(CheckpointConfig.from_dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {place}: {first['msg']}; train the model again") from None
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise InputError(f"{path}: {error}; train the model again") from None


def _checked(config: CheckpointConfig) -> CheckpointConfig:
    """Return the configuration; raise `ValueError` where a value has the wrong type or the options are of no model."""
    TypeAdapter(CheckpointConfig).validate_json(json.dumps(asdict(config)), strict=True)
    if config.kind not in models.OPTIONS:
        raise ValueError(f"kind is {config.kind!r}, expected one of {', '.join(models.OPTIONS)}")
    models.OPTIONS[config.kind].model_validate_json(json.dumps(config.options), strict=True)
    return config
