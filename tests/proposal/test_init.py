"""`fieldcast init`: an empty folder becomes a project whose settings suit its archive, and pass `check`."""

import re
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import yaml

from fieldcast.pipeline import check, config
from fieldcast.pipeline.cli import init
from fieldcast.pipeline.cli.init import SHOWN, init_project
from fieldcast.pipeline.config.sources import GriddedOptions, RadarOptions
from fieldcast.pipeline.datasets.code import code_digest, parts_of_code
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.proposal.choices import _quantiles
from fieldcast.pipeline.proposal.project import default_params, dvc_text, write_project
from fieldcast.pipeline.proposal.survey import Values
from fieldcast.pipeline.proposal.text import yaml_value
from tests.conftest import ROOT
from tests.sources.archives import write_fmi, write_odim


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty folder, which is the working directory."""
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


def fields(frequency: str, count: int, **variables: str) -> xr.Dataset:
    """Return waves on 11 x 13 degrees, by variable in its units."""
    times = pd.date_range("2021-03-01", periods=count, freq=frequency)
    wave = np.sin(np.arange(count) / 5)[:, None, None] + np.arange(11)[:, None] / 4 + np.arange(13) / 9
    coords = {
        "time": times,
        "lat": ("lat", 50.5 - np.arange(11), {"units": "degrees_north"}),
        "lon": ("lon", 4.5 + np.arange(13), {"units": "degrees_east"}),
    }
    dims = ("time", "lat", "lon")
    data = {name: (dims, wave.astype(np.float32) + 280, {"units": units}) for name, units in variables.items()}
    return xr.Dataset(data, coords)


def proposed(source: str | None) -> config.Params:
    """Return the checked parameters of a new project in the working directory."""
    init_project(Path(), source)
    return config.read(Path("params.yaml"))


def test_hourly_temperatures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fields("h", 400, t2m="K").to_netcdf(folder.parent / "t.nc")
    params = proposed("../t.nc")
    assert isinstance(params.source, GriddedOptions)
    assert params.source.variables == ["t2m"]
    assert (params.sample.history, params.sample.horizon) == (24, 12)
    assert params.prepare.anomalies
    assert params.prepare.transform["t2m"].kind == "identity"
    assert params.promotion.leads_minutes == [360, 720]
    assert all(279 < level < 284.5 for level in params.verify.thresholds["t2m"])
    assert {entry.kind for entry in params.models.values()} >= {"persistence", "linear", "unet"}
    text = Path("params.yaml").read_text()
    assert all("#" in line for line in text.splitlines() if line.strip().startswith(("history", "guards", "epochs")))
    printed = capsys.readouterr().out
    assert "warning" not in printed
    assert printed.splitlines()[-2:] == [
        "  fieldcast check    # what a run would do and need",
        "  dvc repro          # all stages, to a table of models and data/comparison/report.html",
    ]
    assert {".git", ".dvc", ".gitignore", ".dvcignore", "dvc.yaml"} <= {path.name for path in folder.iterdir()}
    assert f"      - {folder.parent / 't.nc'}\n" in Path("dvc.yaml").read_text().replace("../", f"{folder.parent}/")


def test_daily_sea_surface_with_land(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sea = fields("D", 300, sst="degC")
    sea["sst"] = (sea["sst"].where(sea["lon"] < 12) - 265).assign_attrs(units="degC")
    sea.to_netcdf("sst.nc")
    params = proposed("sst.nc")
    assert "warning" not in capsys.readouterr().out
    assert isinstance(params.source, GriddedOptions)
    assert params.source.crop is not None
    assert params.source.crop.x == (0, 8)
    assert (params.sample.history, params.sample.horizon) == (7, 7)
    gaps = params.prepare.splits
    assert gaps.validation.start - gaps.train.end >= pd.Timedelta(days=14)


def test_two_variables_with_levels_and_a_bare_one(folder: Path) -> None:
    low = fields("6h", 200, u="m s-1", z="m")
    both = xr.concat([low, low + 1], pd.Index([850.0, 500.0], name="level"), combine_attrs="override")
    both["cells"] = both["u"].isel(level=0, drop=True).drop_attrs()
    both["u"].attrs, both["z"].attrs = {"units": "m s-1"}, {}
    both.to_netcdf("levels.nc")
    params = proposed("levels.nc")
    assert isinstance(params.source, GriddedOptions)
    assert params.source.variables == ["u", "z", "cells"]
    assert params.source.select == {"level": 850.0}
    assert params.source.units == {"z": "1", "cells": "1"}
    assert set(params.verify.thresholds) == {"u", "z", "cells"}


def test_a_radar_archive(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(1)
    for i in range(60):
        moment = pd.Timestamp("2016-09-28T14:00") + i * pd.Timedelta(minutes=5)
        counts = np.full((20, 18), 255, np.uint8)
        counts[3:12, 4:15] = rng.integers(0, 160, (9, 11))
        write_fmi(folder / f"{i:02}.pgm.gz", moment.strftime("%Y%m%d%H%M"), counts)
    params = proposed(str(folder))
    assert "warning" not in capsys.readouterr().out
    assert isinstance(params.source, RadarOptions)
    assert params.source.format == "fmi"
    assert params.source.crop is not None
    assert (params.source.crop.y, params.source.crop.x) == ((3, 12), (4, 15))
    assert params.prepare.transform["rain_rate"].kind == "log"
    assert params.verify.thresholds["rain_rate"] == [0.5, 1, 2, 5]  # of all to 20 mm/h
    assert params.models["unet"].options.model_dump()["base"] == "lagrangian_regression"


def test_a_history_of_rain_has_motion(folder: Path) -> None:
    for i in range(39):
        moment = pd.Timestamp("2021-07-04T15:50") + i * pd.Timedelta(minutes=5)
        counts = np.random.default_rng(i).integers(0, 120, (9, 11)).astype(np.uint8)
        write_odim(folder / f"{i:02}.hdf", str(moment), counts)
    params = proposed(str(folder))
    assert isinstance(params.source, RadarOptions)
    assert params.source.format == "odim"
    assert (params.sample.history, params.sample.horizon) == (2, 2)  # 24 init times and two gaps leave no more


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """Yield the address of a Zarr store behind HTTP."""
    fields("h", 300, t2m="K").to_zarr(tmp_path / "t.zarr", zarr_format=2, consolidated=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/t.zarr"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_zarr_store_behind_a_url(folder: Path, served: str) -> None:
    params = proposed(served)
    assert isinstance(params.source, GriddedOptions)
    assert params.source.path == served
    assert "http" not in Path("dvc.yaml").read_text()


def test_without_a_source_it_is_the_default_project(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = dict.fromkeys(SHOWN, "known") | {"warnings": ["a misfit"]}
    monkeypatch.setattr(init, "facts_of", lambda path: facts | {"grid": config.read(path).source.kind})
    init_project(Path(), None)
    printed = capsys.readouterr().out
    assert "grid: storms\n" in printed
    assert "warning: a misfit\n" in printed
    assert Path("params.yaml").read_text() == (ROOT / "params.yaml").read_text()
    assert "data/raw" not in Path("dvc.yaml").read_text()


def test_nothing_is_overwritten(folder: Path) -> None:
    Path(".gitignore").write_text("mine\n")
    Path("dvc.yaml").write_text("mine\n")
    with pytest.raises(InputError, match=r"dvc.yaml is there already and stays"):
        init_project(Path(), None)
    assert {path.name for path in folder.iterdir()} == {".gitignore", "dvc.yaml"}
    Path("dvc.yaml").unlink()
    done = write_project(Path(), default_params(), None)
    assert ".gitignore was there and stays; add .venv/" in "; ".join(done)
    assert Path(".gitignore").read_text().startswith("mine\n")
    with pytest.raises(InputError, match=r"params.yaml is there already"):
        init_project(Path(), None)


def test_the_repository_is_no_empty_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match="repository, a project already"):
        init_project(Path(), None)


def test_what_cannot_be_a_project_is_refused_before_anything_is_written(folder: Path) -> None:
    Path("maps").mkdir()
    for ending in ("gif", "hdf"):
        Path(f"maps/a.{ending}").write_bytes(b"nothing")
    fields("h", 12, t2m="K").to_netcdf("short.nc")
    xr.Dataset({"a": ("x", np.arange(3.0))}).to_netcdf("flat.nc")
    fields("h", 300, t2m="degC").to_netcdf("wrong.nc")
    for name, words in (
        ("short.nc", "12 frames, too few"),
        ("flat.nc", r"no variable has a CF time and two horizontal axes, found a \('x',\)"),
        ("nowhere/*.nc", "nothing found"),
        ("maps", r"maps: 2 files, .gif, .hdf, of no format that is read: radar of formats knmi, bom, fmi, "),
        ("wrong.nc", r"wrong.nc: what is proposed for it is refused, params.yaml: verify.thresholds.t2m has 555 K"),
    ):
        with pytest.raises(InputError, match=words):
            init_project(Path(), name)
    assert {path.name for path in folder.iterdir()} == {"maps", "short.nc", "flat.nc", "wrong.nc"}


def test_stages_depend_on_digests_of_the_installed_code(folder: Path) -> None:
    write_project(Path(), default_params(), None)
    check.main()
    stages = yaml.safe_load(dvc_text(None))["stages"]
    assert "deps" not in stages["check"]
    assert stages["check"]["always_changed"]
    original = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        deps, expected = (each.get("do", each).get("deps", []) for each in (stage, original[name]))
        if name != "check":
            assert [dep.removeprefix("data/checked/code/") for dep in deps] == [d for d in expected if d != "data/raw"]
        for dep in deps:
            assert not re.match("pipeline|models", dep)
            if dep.startswith("data/checked/code/"):
                assert Path(dep.replace("${item.kind}", "unet")).is_file(), dep
    written = Path("data/checked/code/models/unet").read_text()
    assert written == f"{code_digest(['models/unet'])}\n" != Path("data/checked/code/models/simvp").read_text()
    assert parts_of_code(ROOT) == []


def test_thresholds_are_told_apart() -> None:
    ordered = np.linspace(290.1, 291.9, 500)
    values = Values(290.1, 291.9, 0.5, 0.0, ordered, ordered)
    assert _quantiles(values) == [291.0, 291.5, 291.8]


@pytest.mark.parametrize("value", ["yes", "a b", "http://a:80/b", "*.nc", "/a/b.nc", "2020-01-01T00:00", "a: b", 0.1])
def test_values_are_read_back(value: str | float) -> None:
    assert yaml.safe_load(f"a: {{b: {yaml_value(value)}}}")["a"]["b"] == value
