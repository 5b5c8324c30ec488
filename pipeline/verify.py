"""Verify one model: its forecasts against what was observed, as mergeable sums in `data/scores/<model>.nc`."""

from __future__ import annotations

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.paths import FORECASTS, OBSERVATIONS, PREPARED, SCORES
from fieldcast.pipeline.datasets.preparation.climatology import read_climatology
from fieldcast.pipeline.datasets.schema import MIRRORED
from fieldcast.pipeline.datasets.signature import Statistics
from fieldcast.pipeline.errors import run_stage
from fieldcast.pipeline.verification.aggregation import with_mirrored
from fieldcast.pipeline.verification.blocks import verify
from fieldcast.pipeline.verification.sums_file import write_sums


def main() -> None:
    """Verify the model named on the command line."""
    params = config.load()
    model = config.named_model(__doc__ or "", params)
    forecasts = store.open_forecasts(FORECASTS / f"{model}.zarr")
    observed = store.open_observations(OBSERVATIONS)
    data_range = {channel.name: channel.max - channel.min for channel in Statistics.read(PREPARED).channels}
    climatology = read_climatology(PREPARED)
    sums = verify(forecasts, observed, params.verify, climatology, data_range, params.dask.scheduler)
    mirrored = FORECASTS / f"{model}.zarr" / MIRRORED
    if mirrored.is_dir():
        flipped = verify(store.open_forecasts(mirrored), observed, config.Verify(), scheduler=params.dask.scheduler)
        sums = with_mirrored(sums, flipped)
    write_sums(sums, SCORES / f"{model}.nc")


if __name__ == "__main__":
    run_stage(main)
