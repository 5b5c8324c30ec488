"""Stage `forecast`: a checkpoint + the histories of all test init times -> `data/forecasts/<model>.zarr`.

Blocks of init times are forecast and written one by one, so that memory does not grow with the test period.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import xarray as xr
from einops import rearrange

from models import LEARNED
from pipeline import checkpoint, config, costs, store
from pipeline.frames import FrameReader, read_init_times
from pipeline.parallel import run_blocks
from pipeline.paths import CHECKPOINTS, COSTS, FORECASTS, OBSERVATIONS, PREPARED
from pipeline.schema import INIT_TIME, LEAD_TIME, MEMBER, X, Y, lead_times
from pipeline.tiles import forecast_members


def main() -> None:
    """Forecast the test period with the model named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    model = parser.parse_args().model
    params = config.load()
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
    description = checkpoint.describe(folder)
    with store.open_observations(observations) as observed:
        grid = store.forecast_grid(observed, description.target_names)
    digest = store.directory_digest(folder)
    attributes = {
        "model": description.model,
        "checkpoint_digest": digest,  # its MLflow run carries the same
        "data_digest": description.data_digest,
        **({"members": description.members_are} if description.members_are else {}),
    }
    leads = lead_times(description.horizon, np.timedelta64(description.step_minutes, "m"))
    starts = range(0, len(init_times), options.batch_size)
    with store.replacing(out) as partial:
        store.create_forecasts(
            partial, grid, init_times, leads, options.batch_size, attributes, members=description.members
        )
        jobs = [
            (folder, digest, observations, init_times[start : start + options.batch_size], start, partial, options)
            for start in starts
        ]
        alone = description.kind in LEARNED and scheduler is None  # torch uses all cores by itself
        seconds = run_blocks(
            forecast_block,
            jobs,
            scheduler="synchronous" if alone else scheduler,
            description=f"forecast {description.model}",
            unit="block",
        )
    return costs.Costs(
        forecast_milliseconds=round(1000 * sum(seconds) / len(init_times), 2),
        peak_memory_mb=costs.peak_memory_mb(),
        device=costs.device_name(learned=description.kind in LEARNED),
    )


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
    forecaster = checkpoint.load_cached(folder, digest)
    names = [channel["name"] for channel in forecaster.description.channels]
    reader = FrameReader(observations, names)
    steps = forecaster.description.history
    history = np.stack([reader.read(p + 1 - steps, p + 1) for p in reader.positions(init_times)])
    started = time.perf_counter()
    fields = forecast_members(forecaster, history, init_times, options.tile_cells, options.overlap_cells)
    seconds = time.perf_counter() - started
    fields = rearrange(fields, "b m f c y x -> c b f m y x")
    dims = (INIT_TIME, LEAD_TIME, MEMBER, Y, X)
    block = xr.Dataset({name: (dims, fields[i]) for i, name in enumerate(forecaster.description.target_names)})
    store.write_block(out, start, block.squeeze(MEMBER) if forecaster.description.members is None else block)
    return seconds


if __name__ == "__main__":
    config.run_stage(main)
