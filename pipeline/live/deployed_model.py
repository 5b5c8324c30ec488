"""The model that makes the forecasts: a checkpoint folder, or the version that the registry's alias points to."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fieldcast import models
from fieldcast.pipeline.config import Params
from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.atomic import make_folder, replace_durable
from fieldcast.pipeline.datasets.times import from_minutes
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.checkpoint import Checkpoint, CheckpointConfig
from fieldcast.pipeline.forecasting.forecaster import Forecaster, forecast_members, load_cached

log = logging.getLogger(__name__)
FETCHED = "models"  # folder of checkpoints from the registry
LAST = "last.json"  # the version that each alias pointed to when the registry last answered


@dataclass(frozen=True)
class DeployedModel:
    """A checkpoint that forecasts, and the options that hindcasts of it are made with."""

    folder: Path
    config: CheckpointConfig
    digest: str
    version: str  # 'storms/3' in the registry, else the checkpoint's digest
    tile_cells: int | None
    overlap_cells: int
    fallback_options: dict[str, object]  # of advection, as params.yaml has them

    @cached_property
    def names(self) -> list[str]:
        """Return its channels in order, forecast variables first."""
        return self.config.channel_names

    def forecast(self, history: np.ndarray, init_time: np.datetime64) -> np.ndarray:
        """Return the members (m, lead, c, y, x) of a history (t, c, y, x), as the stage `forecast` makes them."""
        return forecast_one(self.folder, self.digest, history, init_time, self.tile_cells, self.overlap_cells)

    def fallback(self, name: str, history: np.ndarray, init_time: np.datetime64, lag: int) -> np.ndarray:
        """Return the forecast (1, lead, c, y, x) of a reference, from a history without its last `lag` frames."""
        available = history[: len(history) - lag]
        config = replace(
            self.config,
            model=name,
            kind=name,
            options=self.fallback_options if name == "advection" else {},
            horizon=self.config.horizon + lag,
            history=len(available),
        )
        start = np.array([init_time - lag * from_minutes(config.step_minutes)])
        fields: np.ndarray = Forecaster(config, {})(available[None], start)[:, lag:]
        return fields

    def identity(self) -> dict[str, object]:
        """Return all that decides the values of a forecast besides its history."""
        facts = asdict(self)
        for name in ("folder", "config", "version"):
            del facts[name]
        return facts | {"contract": self.config.signature.digest}


def forecast_one(
    folder: Path,
    digest: str,
    history: np.ndarray,
    init_time: np.datetime64,
    tile_cells: int | None,
    overlap_cells: int,
) -> np.ndarray:
    """Return the members (m, lead, c, y, x) of one history (t, c, y, x); the model stays loaded in its process."""
    forecaster = load_cached(folder, digest)
    members: np.ndarray = forecast_members(forecaster, history[None], np.array([init_time]), tile_cells, overlap_cells)[
        0
    ]
    return members


def resolve_model(params: Params, folder: Path, root: Path = Path()) -> DeployedModel:
    """Return the model that `live.model` names; raise `InputError` where there is none.

    Raise `DamagedError` where a byte of it has changed. A registry that does not answer costs ten seconds at most: the
    version that it last named stays in use.
    """
    name = params.live.model
    place = root / name
    if any((place / part).is_file() for part in (checkpoint.CONFIG, manifest.MANIFEST)):
        stored = checkpoint.read_checkpoint(place)
        return _deployed(params, place, stored, stored.digest.removesuffix(".dir")[:12])
    if "/" in name:
        raise InputError(
            f"params.yaml: live.model is '{name}': no checkpoint there, expected a folder such as "
            "data/checkpoints/convlstm (dvc repro trains it) or an alias in the registry such as champion"
        )
    return _registered(params, folder / FETCHED, name, root)


def named_versions(folder: Path) -> dict[str, dict[str, str]]:
    """Return version and digest that each alias had when the registry last answered, by `<experiment>@<alias>`."""
    return _last_named(folder / FETCHED / LAST)


def _registered(params: Params, into: Path, alias: str, root: Path) -> DeployedModel:
    from fieldcast.pipeline.live import mlflow_sync

    experiment = params.track.experiment
    make_folder(into)
    record = into / LAST
    last = _last_named(record)
    key = f"{experiment}@{alias}"
    try:
        registered = mlflow_sync.fetch_registered(experiment, alias, into, root)
        facts = {"version": registered.version, "digest": registered.digest}
        if last.get(key) != facts:
            replace_durable(record, manifest.sealed({**last, key: facts}))
    except InputError as error:
        raise InputError(f"params.yaml: live.model is '{alias}': {error}") from None
    except mlflow_sync.TrackerDownError as error:
        if key not in last:
            raise
        facts = last[key]
        log.warning("%s; %s stays version %s", error, alias, facts["version"])
    place = into / facts["digest"]
    return _deployed(params, place, checkpoint.read_checkpoint(place), f"{experiment}/{facts['version']}")


def _last_named(record: Path) -> dict[str, dict[str, str]]:
    """Return the version that each alias had last; a damaged record is as good as none."""
    if not record.is_file():
        return {}
    try:
        return manifest.unsealed(record, record.read_bytes(), "it is written anew when MLflow answers")
    except DamagedError as error:
        log.warning("%s", error)
        return {}


def _deployed(params: Params, folder: Path, stored: Checkpoint, version: str) -> DeployedModel:
    entry = params.models.get("advection")
    advection = entry.options if entry is not None else models.OPTIONS["advection"]()
    return DeployedModel(
        folder=folder,
        config=stored.config,
        digest=stored.digest,
        version=version,
        tile_cells=params.forecast.tile_cells or stored.config.crop_cells,
        overlap_cells=params.forecast.overlap_cells,
        fallback_options=advection.model_dump(mode="json"),
    )
