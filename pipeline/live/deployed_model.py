"""Which model makes the forecasts: a checkpoint folder, or the one that the registry's alias points to."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from fieldcast import models
from fieldcast.pipeline.config import Params
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.atomic import make_folder, replace_durable
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig
from fieldcast.pipeline.forecasting.forecaster import Forecaster, load_cached
from fieldcast.pipeline.forecasting.tiling import forecast_fields

log = logging.getLogger(__name__)
FETCHED = "models"  # folder of checkpoints from the registry
LAST = "last.json"  # which of them each alias pointed to when the registry last answered


@dataclass(frozen=True)
class Chosen:
    """A checkpoint that forecasts, and the options that hindcasts of it are made with."""

    folder: Path
    digest: str
    version: str  # 'storms/3' in the registry, else the checkpoint's digest
    tile_cells: int | None
    overlap_cells: int
    fallback_options: dict[str, object]  # of advection, as params.yaml has them

    @cached_property
    def description(self) -> CheckpointConfig:
        """Return what the checkpoint was made for."""
        return checkpoint.read_config(self.folder)

    @cached_property
    def names(self) -> list[str]:
        """Return its channels in order, forecast variables first."""
        return self.description.channel_names

    def forecast(self, history: np.ndarray, init_time: np.datetime64) -> np.ndarray:
        """Return the forecast (lead, c, y, x) of a history (t, c, y, x), as the stage `forecast` makes it."""
        return forecast_one(self.folder, self.digest, history, init_time, self.tile_cells, self.overlap_cells)

    def fallback(self, name: str, history: np.ndarray, init_time: np.datetime64, lag: int) -> np.ndarray:
        """Return the forecast (lead, c, y, x) of a reference, from a history whose last `lag` frames are missing."""
        own = self.description
        seen = history[: len(history) - lag]
        options = self.fallback_options if name == "advection" else {}
        description = replace(own, model=name, kind=name, options=options, horizon=own.horizon + lag, history=len(seen))
        start = np.array([init_time - np.timedelta64(lag * own.step_minutes, "m")])
        made: np.ndarray = Forecaster(description, {})(seen[None], start)[0, lag:]
        return made


def forecast_one(
    folder: Path,
    digest: str,
    history: np.ndarray,
    init_time: np.datetime64,
    tile_cells: int | None,
    overlap_cells: int,
) -> np.ndarray:
    """Return the forecast (lead, c, y, x) of one history (t, c, y, x); the model stays loaded in its process."""
    forecaster = load_cached(folder, digest)
    made: np.ndarray = forecast_fields(forecaster, history[None], np.array([init_time]), tile_cells, overlap_cells)[0]
    return made


def choose(params: Params, folder: Path, root: Path = Path()) -> Chosen:
    """Return the model that `live.model` names; raise `InputError` where there is none.

    A registry that does not answer costs ten seconds at most: the model that it last named goes on.
    """
    wanted = params.live.model
    place = root / wanted
    if (place / checkpoint.CONFIG).is_file():
        digest = store.directory_digest(place)
        return _chosen(params, place, digest, digest.removesuffix(".dir")[:12])
    if "/" in wanted:
        raise InputError(
            f"params.yaml: live.model is '{wanted}': no checkpoint there, expected a folder such as "
            "data/checkpoints/convlstm (dvc repro trains it) or an alias in the registry such as champion"
        )
    return _registered(params, folder / FETCHED, wanted, root)


def _registered(params: Params, into: Path, alias: str, root: Path) -> Chosen:
    from fieldcast.pipeline.live import mlflow_sync as tracker

    experiment = params.track.experiment
    make_folder(into)
    record = into / LAST
    last = json.loads(record.read_text()) if record.is_file() else {}
    key = f"{experiment}@{alias}"
    try:
        found = tracker.fetch_registered(experiment, alias, into, root)
        facts = {"version": found.version, "digest": found.digest}
        if last.get(key) != facts:
            replace_durable(record, json.dumps({**last, key: facts}, sort_keys=True).encode())
    except tracker.TrackerDownError as error:
        if key not in last:
            raise
        facts = last[key]
        log.warning("%s; %s stays version %s", error, alias, facts["version"])
    return _chosen(params, into / facts["digest"], facts["digest"], f"{experiment}/{facts['version']}")


def _chosen(params: Params, folder: Path, digest: str, version: str) -> Chosen:
    description = checkpoint.read_config(folder)
    entry = params.models.get("advection")
    advection = entry.options if entry is not None else models.OPTIONS["advection"]()
    return Chosen(
        folder=folder,
        digest=digest,
        version=version,
        tile_cells=params.forecast.tile_cells or description.crop_cells,
        overlap_cells=params.forecast.overlap_cells,
        fallback_options=advection.model_dump(mode="json"),
    )


def identity(chosen: Chosen) -> dict[str, object]:
    """Return what decides the values of a forecast besides its history."""
    facts = asdict(chosen)
    for name in ("folder", "version"):
        del facts[name]
    return facts | {"contract": chosen.description.signature.digest}
