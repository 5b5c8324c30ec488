"""Quality of the observations: missing frames and cells, values refused, range and wet share, by frame and by day."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from tqdm import tqdm

from fieldcast.pipeline.config import Amounts, Split, amount_of
from fieldcast.pipeline.datasets.finite import refuse_infinite
from fieldcast.pipeline.datasets.frames import time_blocks
from fieldcast.pipeline.datasets.labels import without_mathematics
from fieldcast.pipeline.datasets.paths import OBSERVATIONS
from fieldcast.pipeline.datasets.schema import FRAME_PRESENT, TIME, refused_name

SPLIT_COLOURS = {"train": "#4477aa", "validation": "#ccbb44", "test": "#ee6677"}


@dataclass(frozen=True)
class Values:
    """Values of one variable, one number a frame, of the cells where all variables are valid; NaN without any."""

    units: str
    long_name: str
    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    wet_above: float | None  # in `units`; None: nothing is counted
    wet_share: np.ndarray  # share of valid cells above `wet_above`
    refused: np.ndarray  # values that the archive had and that were refused as impossible


@dataclass(frozen=True)
class Report:
    """One value a frame; `valid_share` counts a cell as valid where all variables are."""

    times: np.ndarray  # datetime64[ns]
    present: np.ndarray  # bool
    valid_share: np.ndarray  # 0 to 1
    variables: dict[str, Values]

    def by_day(self) -> list[dict[Any, Any]]:
        """Return a row a UTC day: frames expected and missing, missing cells; range, wet share, refused by variable."""
        day = pd.DatetimeIndex(self.times).strftime("%Y-%m-%d")
        missing = np.where(self.present, 1 - self.valid_share, np.nan)
        frames = pd.DataFrame({"frames": 1, "missing_frames": ~self.present, "missing_cell_share": missing})
        how = {"frames": "sum", "missing_frames": "sum", "missing_cell_share": "mean"}
        own = {name: _by_day(values, day) for name, values in self.variables.items()}
        rows = frames.groupby(day).agg(how).rename_axis("day").reset_index().to_dict("records")
        return [{**row, "variables": {name: days[k] for name, days in own.items()}} for k, row in enumerate(rows)]


def _by_day(values: Values, day: pd.Index) -> list[dict[Any, Any]]:
    columns = {"min": values.low, "max": values.high, "wet_share": values.wet_share, "refused_values": values.refused}
    how = {"min": "min", "max": "max", "wet_share": "mean", "refused_values": "sum"}
    return pd.DataFrame(columns).groupby(day).agg(how).to_dict("records")


def assess(observations: xr.Dataset, names: list[str], wet_above: Amounts) -> Report:
    """Return the quality of `observations`, read block by block; a plain `wet_above` is that of the first of `names`.

    Raise `InputError` for infinite values.
    """
    size = observations.sizes[TIME]
    valid_share = np.full(size, np.nan)
    variables = {name: _unread(observations, name, amount_of(wet_above, name, names)) for name in names}
    for index in tqdm(list(time_blocks(observations[names[0]])), desc="quality", unit="block", disable=None):
        block = observations[names].isel({TIME: index}).compute()
        for name in names:
            refuse_infinite(OBSERVATIONS, name, block[name].values, block[TIME].values)
        valid = np.logical_and.reduce([np.isfinite(block[name].values) for name in names])
        valid_share[index] = valid.mean(axis=(1, 2))
        for name, values in variables.items():
            _assess_block(values, block[name].values, valid, index)
    present = observations[FRAME_PRESENT].values.astype(bool)
    return Report(observations[TIME].values, present, valid_share, variables)


def _unread(observations: xr.Dataset, name: str, wet_above: float | None) -> Values:
    """Return a variable's values before a block is read: all NaN."""
    attributes, size = observations[name].attrs, observations.sizes[TIME]
    low, high, mean, wet = (np.full(size, np.nan) for _ in range(4))
    long_name = attributes.get("long_name", name)
    return Values(attributes["units"], long_name, low, high, mean, wet_above, wet, _refused(observations, name))


def _assess_block(into: Values, values: np.ndarray, valid: np.ndarray, index: slice) -> None:
    """Fill in the frames at `index` with those of `values`, where they are `valid`."""
    counts = valid.sum(axis=(1, 2))
    some = counts > 0
    into.low[index] = np.where(some, np.where(valid, values, np.inf).min(axis=(1, 2)), np.nan)
    into.high[index] = np.where(some, np.where(valid, values, -np.inf).max(axis=(1, 2)), np.nan)
    sums = np.where(valid, values, 0).sum(axis=(1, 2), dtype=np.float64)
    into.mean[index] = np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=some)
    if into.wet_above is not None:
        above = (valid & (values > into.wet_above)).sum(axis=(1, 2))
        into.wet_share[index] = np.divide(above, counts, out=np.full(counts.shape, np.nan), where=some)


def _refused(observations: xr.Dataset, name: str) -> np.ndarray:
    counts = observations.get(refused_name(name))
    return np.zeros(observations.sizes[TIME], np.int32) if counts is None else np.asarray(counts.values)


def write(report: Report, folder: Path, splits: list[tuple[str, Split]]) -> None:
    """Write `quality.json` and `quality.png`."""
    summary = {
        "first": str(report.times[0].astype("datetime64[s]")),
        "last": str(report.times[-1].astype("datetime64[s]")),
        "frames": int(report.times.size),
        "missing_frames": int((~report.present).sum()),
        "missing_cell_share": np.nanmean(1 - report.valid_share[report.present]),
        "variables": {name: _summary(values) for name, values in report.variables.items()},
        "days": report.by_day(),
    }
    (folder / "quality.json").write_text(json.dumps(_rounded(summary), indent=1) + "\n")
    figure = _draw(report, splits)
    without_mathematics(figure)
    figure.savefig(folder / "quality.png", dpi=110, metadata={"Software": None})


def _summary(values: Values) -> dict[str, Any]:
    return {
        "units": values.units,
        "min": np.nanmin(values.low) if np.isfinite(values.low).any() else None,
        "max": np.nanmax(values.high) if np.isfinite(values.high).any() else None,
        "wet_above": values.wet_above,
        "wet_share": np.nanmean(values.wet_share) if np.isfinite(values.wet_share).any() else None,
        "refused_values": int(values.refused.sum()),
    }


def _rounded(value: Any) -> Any:
    """Return what JSON can hold: numbers to six digits, NaN as null."""
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(f"{value:.6g}")
    return value.item() if isinstance(value, np.generic) else value


def _draw(report: Report, splits: list[tuple[str, Split]]) -> Figure:
    """Return the picture: for each variable its range and, where asked for, its wet share; missing cells below."""
    drawn: list[Callable[[Axes], None]] = []
    for values in report.variables.values():
        drawn.append(partial(_draw_range, report.times, values))
        if values.wet_above is not None:
            drawn.append(partial(_draw_wet, report.times, values))
    drawn.append(partial(_draw_missing, report))
    figure = Figure(figsize=(10, 1 + 2 * len(drawn)), layout="constrained")
    axes = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axis, draw in zip(axes, drawn, strict=True):
        draw(axis)
        axis.spines[["top", "right"]].set_visible(False)
        for split_name, split in splits:
            axis.axvspan(split.start, split.end, color=SPLIT_COLOURS[split_name], alpha=0.12, lw=0, label=split_name)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6, frameon=False)
    figure.align_ylabels(axes)
    return figure


def _draw_range(times: np.ndarray, values: Values, axis: Axes) -> None:
    axis.fill_between(times, values.low, values.high, color="#bbccee", step="mid", label="lowest to highest")
    axis.plot(times, values.mean, color="#222255", lw=0.8, label="mean")
    axis.set_ylabel(f"{values.long_name}\n[{values.units}]")


def _draw_wet(times: np.ndarray, values: Values, axis: Axes) -> None:
    axis.plot(times, 100 * values.wet_share, color="#228833", lw=0.8)
    axis.set_ylabel(f"cells above\n{values.wet_above:g} {values.units} [%]")


def _draw_missing(report: Report, axis: Axes) -> None:
    missing = np.where(report.present, 100 * (1 - report.valid_share), 100)
    axis.fill_between(report.times, missing, color="#aaaaaa", step="mid", lw=0, label="missing cells")
    refused = {name: int(values.refused.sum()) for name, values in report.variables.items()}
    named = {name: f" of {name}" if len(refused) > 1 else "" for name in refused}
    lines = [f"{count} values refused{named[name]}" for name, count in refused.items() if count]
    axis.set_ylabel("\n".join(["missing cells", "[%]", *lines]))
    axis.set_ylim(0, 105)
