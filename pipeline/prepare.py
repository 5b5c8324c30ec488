"""Stage `prepare`: observations -> statistics, climatology, init times and a quality report.

Everything that a model learns from comes from the training period alone: its init times' histories and targets.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import xarray as xr

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import manifest, store
from fieldcast.pipeline.datasets.atomic import replacing
from fieldcast.pipeline.datasets.frames import time_blocks
from fieldcast.pipeline.datasets.paths import OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.preparation import quality
from fieldcast.pipeline.datasets.preparation.climatology import CLIMATOLOGY, fit_climatology
from fieldcast.pipeline.datasets.preparation.learned import digest_of, write_digest
from fieldcast.pipeline.datasets.preparation.ranges import Range
from fieldcast.pipeline.datasets.preparation.splits import channel_order, select_init_times, span
from fieldcast.pipeline.datasets.schema import FRAME_PRESENT, TIME, field_names, step_of
from fieldcast.pipeline.datasets.signature import Channel, Statistics, signature_of
from fieldcast.pipeline.datasets.transforms import transform
from fieldcast.pipeline.errors import InputError, run_stage


def main() -> None:
    """Read `data/observations.zarr`, write `data/prepared/`."""
    params = config.load()
    observations = store.open_observations(OBSERVATIONS, chunks="shards")
    prepare(observations, params.prepare, params.sample.history, params.sample.horizon, PREPARED)


def prepare(observations: xr.Dataset, options: config.Prepare, history: int, horizon: int, folder: Path) -> None:
    """Write statistics, climatology, init times, the quality report, their digest and checksums as `folder`."""
    step = pd.Timedelta(step_of(observations)).to_pytimedelta()
    config.check_gaps(options.splits, history, horizon, step)
    names = channel_order(field_names(observations), options)
    report = quality.assess(observations, names, options.wet_above)
    usable = report.present & (report.valid_share >= options.min_valid_share)
    init_times = select_init_times(report.times, usable, options, history, horizon)
    training = training_frames(observations, options.splits.train, horizon * step)
    climatology = fit_climatology(training, names, options)
    statistics = statistics_of(observations, training, climatology, names, options)
    with replacing(folder) as partial:
        partial.mkdir()
        quality.write(report, partial, options.splits.in_order())
        init_times.to_csv(partial / "init_times.csv", index=False, date_format="%Y-%m-%dT%H:%M:%S")
        climatology.to_netcdf(partial / CLIMATOLOGY, engine="h5netcdf")
        statistics.write(partial)
        digest = digest_of(observations, names, init_times, (history, horizon), statistics, climatology)
        write_digest(partial, digest)
        manifest.write(partial)


def training_frames(observations: xr.Dataset, train: config.Split, reach: timedelta) -> xr.Dataset:
    """Return the frames of the training period, from its first init time to its last target."""
    frames = observations.sel(time=slice(train.start, train.end + reach))
    if not frames.sizes[TIME] or not bool(frames[FRAME_PRESENT].any()):
        raise InputError(
            f"params.yaml: prepare.splits.train covers {train.start} to {train.end}, where the observations have no"
            f" frame; they run from {span(observations[TIME].values)}"
        )
    return frames


def statistics_of(
    observations: xr.Dataset, training: xr.Dataset, climatology: xr.Dataset, names: list[str], options: config.Prepare
) -> Statistics:
    """Return the channels `names`, targets first, with their statistics over `training`, and the data's signature."""
    return Statistics(
        channels=tuple(_channel(training[name], climatology[name], options) for name in names),
        targets=len(options.targets or names),
        anomalies=options.anomalies,
        signature=signature_of(observations, names, step_of(observations), observations[TIME].values[0]),
    )


def _channel(frames: xr.DataArray, climatology: xr.DataArray, options: config.Prepare) -> Channel:
    chosen = options.transform.get(str(frames.name), config.Transform())
    hours = np.asarray(frames[TIME].dt.hour)
    baseline = transform(torch.as_tensor(climatology.values), chosen.kind, chosen.floor).numpy().astype(np.float64)
    count, total, squares = 0, 0.0, 0.0
    extent = Range(str(frames.name), frames.attrs["units"])
    for index in time_blocks(frames):
        block = frames[index].values
        extent = extent.with_values(block)
        extent.require_transform(chosen)
        z = transform(torch.as_tensor(block), chosen.kind, chosen.floor).numpy().astype(np.float64)
        if options.anomalies:
            z -= baseline[hours[index] % baseline.shape[0]]
        _require_transformed(frames, block, z, chosen)
        valid = np.isfinite(z)
        count += int(valid.sum())
        total += float(z[valid].sum())
        squares += float((z[valid] ** 2).sum())
    if extent.low is None or extent.high is None:
        raise InputError(f"{OBSERVATIONS}: {frames.name} has no valid value in the training period; choose another one")
    extent.require_change(OBSERVATIONS)
    mean = total / count
    spread = float(np.sqrt(max(squares / count - mean**2, 0.0)))
    return Channel(
        name=str(frames.name),
        units=frames.attrs["units"],
        transform=chosen.kind,
        floor=chosen.floor,
        valid_min=_number(frames.attrs.get("valid_min")),
        valid_max=_number(frames.attrs.get("valid_max")),
        mean=0.0 if options.anomalies else mean,
        scale=spread if spread > 0 else 1.0,
        min=extent.low,
        max=extent.high,
        valid_values=count,
    )


def _require_transformed(frames: xr.DataArray, block: np.ndarray, z: np.ndarray, chosen: config.Transform) -> None:
    """Raise `InputError` for values that have no place in float32 once they are transformed."""
    if np.isinf(z).any():
        raise InputError(
            f"params.yaml: prepare.transform.{frames.name} is {chosen.kind} with floor {chosen.floor:g}, but a value "
            f"of {block[np.isinf(z)][0]:g} {frames.attrs['units']} is beyond numbers then: raise the floor, or "
            "choose another period"
        )


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


if __name__ == "__main__":
    run_stage(main)
