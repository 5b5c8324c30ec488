"""Warnings of `fieldcast check`: settings that are allowed and don't fit the data."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml

from fieldcast.pipeline import config
from fieldcast.pipeline.cli.check import facts_of
from fieldcast.pipeline.cli.misfits import misfits
from fieldcast.pipeline.datasets.preparation.ranges import Range
from fieldcast.pipeline.sources import SourceInfo, inspect_source
from tests.conftest import merged

RAIN = Range("rain_rate", "mm h-1", 0.0, 30.0)


@pytest.fixture(scope="module")
def source(small: dict[str, Any]) -> SourceInfo:
    """Return what is known of 24 x 24 cells of 2 km."""
    options = config.sources.StormsOptions.model_validate({**small["source"]})
    return inspect_source(options, config.IngestOptions())


def warned(
    tmp_path: Path, small: dict[str, Any], source: SourceInfo, changes: dict[str, Any], *ranges: Range
) -> list[str]:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(merged(small, changes)))
    return misfits(config.read(path), source, ranges or [RAIN])


def test_the_default_fits(tmp_path: Path, small: dict[str, Any], source: SourceInfo) -> None:
    assert warned(tmp_path, small, source, {}) == []


def test_thresholds_outside_of_the_values(tmp_path: Path, small: dict[str, Any], source: SourceInfo) -> None:
    (line,) = warned(tmp_path, small, source, {"verify": {"thresholds": {"rain_rate": [1, 50, 60]}}})
    assert line.startswith("verify.thresholds.rain_rate has 50, 60, outside of the values looked at, 0 to 30 mm h-1")
    some = Range("rain_rate", "mm h-1", 0.0, 30.0, whole=False)
    (line,) = warned(tmp_path, small, source, {"verify": {"thresholds": {"rain_rate": [1, 50, 61]}}}, some)
    assert line.startswith("verify.thresholds.rain_rate has 61, outside")
    assert warned(tmp_path, small, source, {}, Range("rain_rate", "mm h-1")) == []


def test_rain_settings_on_kelvins(tmp_path: Path, small: dict[str, Any], source: SourceInfo) -> None:
    warm = Range("rain_rate", "K", 270.0, 300.0)
    wet, loss = warned(
        tmp_path, small, source, {"train": {"loss": "mix"}, "verify": {"thresholds": {"rain_rate": [280]}}}, warm
    )
    assert wet.startswith("prepare.wet_above is 0.1, and rain_rate is 270 to 300 K")
    assert loss == "train.loss is mix, for amounts such as rain, and rain_rate is in K: mse or mae"


def test_neighbourhoods_below_a_cell(tmp_path: Path, small: dict[str, Any], source: SourceInfo) -> None:
    (line,) = warned(tmp_path, small, source, {"verify": {"neighbourhoods_km": [0.5, 1.5, 2]}})
    assert line == "verify.neighbourhoods_km has 0.5, 1.5, less than a cell of 2 x 2 km, which it stands for"


def test_a_live_source_of_another_kind_or_grid(tmp_path: Path, small: dict[str, Any], source: SourceInfo) -> None:
    radar = {"kind": "radar", "path": "a", "format": "fmi"}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump({**small, "live": {"source": radar}}))
    (line,) = misfits(config.read(path), source, [RAIN])
    assert line.startswith("live.source.kind is radar, and source.kind is storms: ")
    lines = warned(tmp_path, small, source, {"live": {"source": {"coarsen": 2, "crop": {"y": [0, 8], "x": [0, 8]}}}})
    assert [line.partition(": unless")[0] for line in lines] == [
        "live.source.crop is {'y': (0, 8), 'x': (0, 8)}, and source.crop is None",
        "live.source.coarsen is 2, and source.coarsen is 1",
    ]


def test_check_looks_at_frames_where_there_are_no_observations(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    times = np.arange("2024-06-01T00", "2024-06-03T08", dtype="datetime64[5m]").astype("datetime64[ns]")
    axis = {name: (name, 2.0 * np.arange(9), {"units": "km"}) for name in ("y", "x")}
    field = (("time", "y", "x"), np.full((times.size, 9, 9), 288, np.float32) + np.arange(9), {"units": "K"})
    xr.Dataset({"t2m": field}, {"time": times, **axis}).to_netcdf("a.nc")
    content = merged(small, {})
    content["source"] = {"kind": "gridded", "path": "a.nc", "variables": ["t2m"]}
    content["prepare"]["transform"] = {}
    content["verify"] = {"thresholds": {"t2m": [290, 350]}}
    content["models"] = {"persistence": {"kind": "persistence"}}
    del content["live"]
    Path("params.yaml").write_text(yaml.safe_dump(content))
    first, wet = facts_of(Path("params.yaml"))["warnings"]
    assert first.startswith("verify.thresholds.t2m has 350, outside of the values looked at, 288 to 296 K")
    assert wet.startswith("prepare.wet_above is 0.1")
