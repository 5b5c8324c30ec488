"""Quality of the observations: missing frames and cells, values refused, range and wet share, by frame and by day."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.figure import Figure
from tqdm import tqdm

from fieldcast.pipeline.config import Split
from fieldcast.pipeline.datasets.finite import refuse_infinite
from fieldcast.pipeline.datasets.frames import time_blocks
from fieldcast.pipeline.datasets.labels import without_mathematics
from fieldcast.pipeline.datasets.paths import OBSERVATIONS
from fieldcast.pipeline.datasets.schema import FRAME_PRESENT, TIME, refused_name

SPLIT_COLOURS = {"train": "#4477aa", "validation": "#ccbb44", "test": "#ee6677"}


@dataclass(frozen=True)
class Report:
    """One value a frame; `valid_share` counts a cell as valid where all variables are."""

    times: np.ndarray  # datetime64[ns]
    present: np.ndarray  # bool
    valid_share: np.ndarray  # 0 to 1
    low: np.ndarray  # lowest value of the first variable, NaN where nothing is valid
    high: np.ndarray
    mean: np.ndarray
    wet_share: np.ndarray  # share of valid cells above `wet_above`
    wet_above: float
    refused: dict[str, np.ndarray]  # by variable: values that the archive had and that were refused as impossible

    def by_day(self) -> pd.DataFrame:
        """Return one row a UTC day: frames expected and missing, missing cells, values refused, range and wet share."""
        frame = pd.DataFrame(
            {
                "day": pd.DatetimeIndex(self.times).strftime("%Y-%m-%d"),
                "frames": 1,
                "missing_frames": (~self.present).astype(int),
                "missing_cell_share": np.where(self.present, 1 - self.valid_share, np.nan),
                "refused_values": np.sum(list(self.refused.values()), axis=0),
                "min": self.low,
                "max": self.high,
                "wet_share": self.wet_share,
            }
        )
        how = {"frames": "sum", "missing_frames": "sum", "missing_cell_share": "mean", "refused_values": "sum"}
        return frame.groupby("day").agg({**how, "min": "min", "max": "max", "wet_share": "mean"}).reset_index()


def assess(observations: xr.Dataset, names: list[str], wet_above: float) -> Report:
    """Return the quality of `observations`, read block by block; range and wet share are of the first of `names`.

    Raise `InputError` for infinite values.
    """
    size = observations.sizes[TIME]
    valid_share, low, high, mean, wet = (np.full(size, np.nan) for _ in range(5))
    for index in tqdm(list(time_blocks(observations[names[0]])), desc="quality", unit="block", disable=None):
        block = observations[names].isel({TIME: index}).compute()
        for name in names:
            refuse_infinite(OBSERVATIONS, name, block[name].values, block[TIME].values)
        valid = np.logical_and.reduce([np.isfinite(block[name].values) for name in names])
        values = block[names[0]].values
        valid_share[index] = valid.mean(axis=(1, 2))
        counts = valid.sum(axis=(1, 2))
        some = counts > 0
        low[index] = np.where(some, np.where(valid, values, np.inf).min(axis=(1, 2)), np.nan)
        high[index] = np.where(some, np.where(valid, values, -np.inf).max(axis=(1, 2)), np.nan)
        sums = np.where(valid, values, 0).sum(axis=(1, 2), dtype=np.float64)
        mean[index] = np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=some)
        above = (valid & (values > wet_above)).sum(axis=(1, 2))
        wet[index] = np.divide(above, counts, out=np.full(counts.shape, np.nan), where=some)
    present = observations[FRAME_PRESENT].values.astype(bool)
    refused = {name: _refused(observations, name) for name in names}
    return Report(observations[TIME].values, present, valid_share, low, high, mean, wet, wet_above, refused)


def _refused(observations: xr.Dataset, name: str) -> np.ndarray:
    counts = observations.get(refused_name(name))
    return np.zeros(observations.sizes[TIME], np.int32) if counts is None else np.asarray(counts.values)


def write(report: Report, folder: Path, splits: list[tuple[str, Split]], attributes: dict[str, Any]) -> None:
    """Write `quality.json` and `quality.png`."""
    days = report.by_day()
    summary = {
        "first": str(report.times[0].astype("datetime64[s]")),
        "last": str(report.times[-1].astype("datetime64[s]")),
        "frames": int(report.times.size),
        "missing_frames": int((~report.present).sum()),
        "missing_cell_share": _rounded(np.nanmean(1 - report.valid_share[report.present])),
        "refused_values": {name: int(counts.sum()) for name, counts in report.refused.items()},
        "min": _rounded(np.nanmin(report.low)) if np.isfinite(report.low).any() else None,
        "max": _rounded(np.nanmax(report.high)) if np.isfinite(report.high).any() else None,
        "wet_share": _rounded(np.nanmean(report.wet_share)) if np.isfinite(report.wet_share).any() else None,
        "wet_above": report.wet_above,
        "units": attributes.get("units"),
        "days": [{key: _rounded(value) for key, value in row.items()} for row in days.to_dict("records")],
    }
    (folder / "quality.json").write_text(json.dumps(summary, indent=1) + "\n")
    figure = _draw(report, splits, attributes)
    without_mathematics(figure)
    figure.savefig(folder / "quality.png", dpi=110, metadata={"Software": None})


def _rounded(value: Any) -> Any:
    if isinstance(value, float | np.floating):
        return None if np.isnan(value) else float(f"{value:.6g}")
    return value.item() if isinstance(value, np.generic) else value


def _draw(report: Report, splits: list[tuple[str, Split]], attributes: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(3, 1, sharex=True)
    name, units = attributes.get("long_name", "value"), attributes.get("units", "")
    axes[0].fill_between(report.times, report.low, report.high, color="#bbccee", step="mid", label="lowest to highest")
    axes[0].plot(report.times, report.mean, color="#222255", lw=0.8, label="mean")
    axes[0].set_ylabel(f"{name}\n[{units}]")
    axes[1].plot(report.times, 100 * report.wet_share, color="#228833", lw=0.8)
    axes[1].set_ylabel(f"cells above\n{report.wet_above:g} {units} [%]")
    missing = np.where(report.present, 100 * (1 - report.valid_share), 100)
    axes[2].fill_between(report.times, missing, color="#aaaaaa", step="mid", lw=0, label="missing cells")
    refused = sum(int(counts.sum()) for counts in report.refused.values())
    axes[2].set_ylabel("missing cells\n[%]" + (f"\n{refused} values refused" if refused else ""))
    axes[2].set_ylim(0, 105)
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        for split_name, split in splits:
            axis.axvspan(split.start, split.end, color=SPLIT_COLOURS[split_name], alpha=0.12, lw=0, label=split_name)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6, frameon=False)
    figure.align_ylabels(axes)
    return figure
