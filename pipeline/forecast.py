"""Stage `forecast`: a checkpoint + the histories of all test init times -> `data/forecasts/<model>.zarr`.

Blocks of init times are forecast and written one by one, so that memory does not grow with the test period. With
`forecast.online` networks learn on between the forecasts.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr
from tqdm import tqdm

from fieldcast.models import LEARNED, scheduler_of
from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import manifest, store
from fieldcast.pipeline.datasets.atomic import replacing
from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times, thinned
from fieldcast.pipeline.datasets.parallel import run_blocks
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, COSTS, FORECASTS, OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.schema import (
    INIT_TIME,
    LEAD_TIME,
    MEMBER,
    MIRRORED,
    ONLINE,
    X,
    Y,
    lead_times,
)
from fieldcast.pipeline.datasets.times import from_minutes
from fieldcast.pipeline.errors import run_stage
from fieldcast.pipeline.forecasting import checkpoint, costs
from fieldcast.pipeline.forecasting.dataset import attributes_of, fields_by_name, require_complete, with_decisions
from fieldcast.pipeline.forecasting.forecaster import Forecaster, forecast_members, load, load_cached
from fieldcast.pipeline.forecasting.mirror import MIRROR_TIMES, forecast_mirrored, has_mirror


def main() -> None:
    """Forecast the test period with the model named on the command line."""
    params = config.load()
    model = config.named_model(__doc__ or "", params)
    init_times = read_init_times(PREPARED / "init_times.csv", "test")
    spent = forecast(
        CHECKPOINTS / model,
        OBSERVATIONS,
        init_times,
        FORECASTS / f"{model}.zarr",
        params.forecast,
        params.dask.scheduler,
    )
    costs.write(spent, COSTS / "forecast" / f"{model}.json")


def forecast(
    folder: Path,
    observations: Path,
    init_times: np.ndarray,
    out: Path,
    options: config.Forecast,
    scheduler: str | None = None,
) -> costs.Costs:
    """Write the forecasts of the checkpoint in `folder` for all `init_times` (datetime64[ns]); return what they cost.

    The store appears only when it is complete. Values are in physical units on the observations' grid; a cell
    without any valid value in its history is NaN.
    """
    stored = checkpoint.read_checkpoint(folder)
    checkpoint_config, digest = stored.config, stored.digest
    online = options.online if checkpoint_config.kind in LEARNED else None
    with store.open_observations(observations) as observed:
        grid = store.forecast_grid(observed, checkpoint_config.target_names)
    if online is not None:
        options.check_online((grid.sizes[Y], grid.sizes[X]), checkpoint_config.crop_cells)
    learning = {ONLINE: online.learning_rate} if online is not None else {}
    attributes = {**attributes_of(checkpoint_config, digest), **learning}
    leads = lead_times(checkpoint_config.horizon, from_minutes(checkpoint_config.step_minutes))
    starts = range(0, len(init_times), options.batch_size)
    with replacing(out) as partial:
        described = with_decisions(grid, stored)
        store.create_forecasts(
            partial, described, init_times, leads, options.batch_size, attributes, members=checkpoint_config.members
        )
        jobs = [
            (folder, digest, observations, init_times[start : start + options.batch_size], start, partial, options)
            for start in starts
        ]
        seconds = (
            run_blocks(
                forecast_block,
                jobs,
                scheduler=scheduler or scheduler_of(checkpoint_config.kind),
                description=f"forecast {checkpoint_config.model}",
                unit="block",
            )
            if online is None
            else forecast_online(folder, digest, observations, init_times, partial, options, online)
        )
        store.consolidate(partial)
        if online is None and has_mirror(checkpoint_config):  # a store inside, which the outer one does not know
            forecaster = load_cached(folder, digest)
            write_mirrored(partial / MIRRORED, described, forecaster, observations, init_times, options)
        manifest.write(partial)
    return costs.Costs(
        forecast_milliseconds=round(1000 * sum(seconds) / len(init_times), 2),
        peak_memory_mb=costs.peak_memory_mb(),
        device=costs.device_name(learned=checkpoint_config.kind in LEARNED),
    )


def write_mirrored(
    out: Path,
    grid: xr.Dataset,
    forecaster: Forecaster,
    observations: Path,
    init_times: np.ndarray,
    options: config.Forecast,
) -> None:
    """Write the forecasts of flipped fields, of at most `MIRROR_TIMES` of the init times."""
    description = forecaster.config
    times = thinned(init_times, MIRROR_TIMES)
    leads = lead_times(description.horizon, from_minutes(description.step_minutes))
    attributes = {"model": description.model, "members": description.members_are or "none"}
    store.create_forecasts(out, grid, times, leads, options.batch_size, attributes, members=description.members)
    reader = FrameReader(observations, description.channel_names)
    positions = reader.positions(times)
    starts = range(0, len(times), options.batch_size)
    for start in tqdm(starts, f"flipped {description.model}", unit="block", disable=not sys.stderr.isatty()):
        chosen = slice(start, start + options.batch_size)
        history = reader.samples(positions[chosen], description.history)
        fields = forecast_mirrored(forecaster, history, times[chosen], options.tile_cells, options.overlap_cells)
        write_fields(out, start, fields, description)
    store.finish(out)


def forecast_block(
    folder: Path,
    digest: str,
    observations: Path,
    init_times: np.ndarray,
    start: int,
    out: Path,
    options: config.Forecast,
) -> float:
    """Forecast some init times, write them from position `start` of the store `out`; return the model's seconds."""
    forecaster = load_cached(folder, digest)
    reader = FrameReader(observations, forecaster.config.channel_names)
    history = reader.samples(reader.positions(init_times), forecaster.config.history)
    started = time.perf_counter()
    fields = forecast_members(forecaster, history, init_times, options.tile_cells, options.overlap_cells)
    seconds = time.perf_counter() - started
    require_complete(folder, fields, history, init_times, forecaster.config)
    write_fields(out, start, fields, forecaster.config)
    return seconds


def forecast_online(
    folder: Path,
    digest: str,
    observations: Path,
    init_times: np.ndarray,
    out: Path,
    options: config.Forecast,
    online: config.Online,
) -> list[float]:
    """Forecast all init times, which ascend, while the network learns on; return the seconds of each.

    One after the other in this process, whatever `dask.scheduler` is; the seconds are those of reading, learning and
    forecasting. No frame after an init time is read before its forecast is made. The checkpoint stays as it is.
    """
    from fieldcast.pipeline.forecasting.online import Learning  # brings torch, which references do without

    forecaster = load(folder, digest=digest)  # the cached one must not change
    checkpoint_config = forecaster.config
    assert forecaster.network is not None
    reader = FrameReader(observations, checkpoint_config.channel_names)
    positions = reader.positions(init_times)
    learning = Learning(forecaster.network, checkpoint_config, reader, online)
    seconds = []
    starts = range(0, len(init_times), options.batch_size)
    for start in tqdm(starts, f"forecast {checkpoint_config.model}", unit="block", disable=not sys.stderr.isatty()):
        fields = []
        for i in range(start, min(start + options.batch_size, len(init_times))):
            started, alone = time.perf_counter(), init_times[i : i + 1]
            learning.before(init_times[i])
            history = reader.sample(positions[i], checkpoint_config.history)[None]
            fields.append(forecast_members(forecaster, history, alone, options.tile_cells, options.overlap_cells))
            require_complete(folder, fields[-1], history, alone, checkpoint_config)
            seconds.append(time.perf_counter() - started)
        write_fields(out, start, np.concatenate(fields), checkpoint_config)
    return seconds


def write_fields(out: Path, start: int, fields: np.ndarray, checkpoint_config: checkpoint.CheckpointConfig) -> None:
    """Write forecasts (b, m, horizon, c, y, x) from position `start` of the store `out`."""
    dims = (INIT_TIME, LEAD_TIME, *([] if checkpoint_config.members is None else [MEMBER]), Y, X)
    values = fields_by_name(fields, checkpoint_config)
    store.write_block(out, start, xr.Dataset({name: (dims, array) for name, array in values.items()}))


if __name__ == "__main__":
    run_stage(main)
