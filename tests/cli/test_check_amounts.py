import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import yaml

from fieldcast import models
from fieldcast.pipeline import config
from fieldcast.pipeline.cli.check import check_values, facts_of, known_ranges
from fieldcast.pipeline.config import Split
from fieldcast.pipeline.datasets import manifest, store
from fieldcast.pipeline.datasets.paths import OBSERVATIONS
from fieldcast.pipeline.datasets.preparation import ranges as module
from fieldcast.pipeline.datasets.preparation.ranges import Range, ranges_of
from fieldcast.pipeline.datasets.signature import signature_of
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source
from fieldcast.pipeline.train import train
from fieldcast.pipeline.training.amounts import check_amounts, check_cells
from tests.conftest import rewrite

DEFAULT = Path(__file__).parents[2] / "params.yaml"
RAIN = Range("t", "mm h-1", 0.0, 80.0)


def params(tmp_path: Path, kind: str, entries: dict[str, object]) -> config.Params:
    content = yaml.safe_load(DEFAULT.read_text())
    content["prepare"]["transform"] = {} if kind == "identity" else {"t": {"kind": kind, "floor": 0.1}}
    content["models"] = entries
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return config.read(tmp_path / "params.yaml")


def check(kind: str, field: Range, **options: Any) -> None:
    check_amounts("a", models.OPTIONS[kind].model_validate(options), [field])


def test_transforms_and_references_of_amounts_refuse_temperatures_and_decibels(tmp_path):
    persistence, steps = {"persistence": {"kind": "persistence"}}, {"steps": {"kind": "steps"}}
    check_values(params(tmp_path, "identity", persistence), [Range("t", "K")])
    check_values(params(tmp_path, "log", persistence | steps), [Range("t", "mm h-1")])
    with pytest.raises(InputError, match=r"transform\.t is log, but t is in K, expected an amount"):
        check_values(params(tmp_path, "log", persistence), [Range("t", "K")])
    with pytest.raises(InputError, match=r"models\.steps works in decibels of an amount, but t is in dBZ, expected"):
        check_values(params(tmp_path, "identity", persistence | steps), [Range("t", "dBZ")])


@pytest.mark.parametrize(
    ("kind", "options", "key"),
    [
        ("steps", {}, "models.a works"),
        ("sprog", {}, "models.a works"),
        ("advection", {}, "models.a.transform: db works"),
        ("lagrangian_regression", {}, "models.a.transform: db works"),
        ("unet", {"frame": "moving"}, "models.a.motion.transform: db works"),
        ("recurrent", {"base": "advection"}, "models.a.motion.transform: db works"),
    ],
)
@pytest.mark.parametrize(
    ("field", "reason"),
    [
        (Range("t", "1", -32.0, 60.5), "t has values of -32 to 60.5 1, expected dry cells and amounts from 0.1 on"),
        (Range("t", "hPa", 960.0, 1040.0), "t has values of 960 to 1040 hPa, expected dry cells"),
        (Range("t", "K", 230.0, 310.0), "t is in K, with values of 230 to 310 K, expected dry cells"),
    ],
)
def test_decibels_of_fields_that_are_no_rain_are_refused(kind, options, key, field, reason):
    check(kind, RAIN, **options)
    check(kind, Range("t", "mm", -1e-4, 3.0), **options)  # rounding
    with pytest.raises(InputError) as caught:
        check(kind, field, **options)
    assert key in str(caught.value)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("persistence", {}),
        ("advection", {"transform": "identity"}),
        ("unet", {}),
        ("unet", {"base": "linear"}),
        ("unet", {"frame": "moving", "motion": {"transform": "identity"}}),
    ],
)
def test_other_models_take_any_field(kind, options):
    check(kind, Range("t", "K", 230.0, 310.0), **options)


def test_ranges_are_of_the_training_period_and_bounded(monkeypatch):
    values = np.zeros((8, 2, 3), np.float32)
    values[:, 0, 0], values[3], values[7] = np.arange(8), np.nan, 99
    times = np.datetime64("2020-01-01", "ns") + np.arange(8) * np.timedelta64(1, "h")
    data = xr.Dataset({"t": (("time", "y", "x"), values, {"units": "K"})}, {"time": times})
    train_period = Split.model_validate({"start": "2020-01-01T01:00", "end": "2020-01-01T06:00"})
    assert ranges_of(data, ["t"], train_period) == [Range("t", "K", 0.0, 6.0)]
    monkeypatch.setattr(module, "MOST_VALUES", 18)
    assert ranges_of(data, ["t"], train_period) == [Range("t", "K", 0.0, 5.0, whole=False)]


def planted(change: Any) -> None:
    observed = store.open_observations(OBSERVATIONS).load()
    grid, size = store.forecast_grid(observed, ["rain_rate"]), observed.sizes["time"]
    shutil.rmtree(OBSERVATIONS)
    store.create_observations(OBSERVATIONS, grid, observed.time.values, observed.frame_present.values, size)
    store.write_block(OBSERVATIONS, 0, observed[["rain_rate"]].map(change))
    store.finish(OBSERVATIONS)


def test_check_judges_observations_that_are_there_by_their_values(project: Path) -> None:
    changed = rewrite(project, {"models": {"advection": {"kind": "advection"}}})
    facts_of(Path("params.yaml"))
    planted(lambda rain: rain - 7.5)
    with pytest.raises(InputError) as caught:
        facts_of(Path("params.yaml"))
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("params.yaml: prepare.transform.rain_rate is log, but rain_rate has values of -7.5 to")
    assert any("models.advection.transform: db works in decibels of an amount, but rain_rate has" in x for x in lines)
    source = inspect_source(changed.source, changed.ingest)
    (project / OBSERVATIONS / "manifest.json").unlink()  # another command says what is wrong with it
    assert known_ranges(changed, source, ["rain_rate"]) == [Range("rain_rate", "mm h-1")]


def test_check_names_a_constant_field(project: Path) -> None:
    rewrite(project, {"models": {"persistence": {"kind": "persistence"}}})
    planted(lambda rain: rain * 0 + 2)
    with pytest.raises(InputError, match=r"observations.zarr: rain_rate is 2 mm h-1 in every cell"):
        facts_of(Path("params.yaml"))


def test_a_training_refuses_fields_that_are_no_rain(project: Path) -> None:
    changed = rewrite(project, {"models": {"steps": {"kind": "steps", "dry_below": 0.0001}}})
    statistics = project / "data" / "prepared" / "statistics.json"
    statistics.write_text(statistics.read_text().replace('"min": 0.0', '"min": 230.0'))
    manifest.write(statistics.parent)
    with pytest.raises(InputError, match=r"models.steps works in decibels .* but rain_rate has values of 230"):
        train(changed, "steps")


def test_a_cascade_needs_square_cells() -> None:
    for kind in ("steps", "sprog"):
        check_cells("a", models.OPTIONS[kind].model_validate({}), 1.05)
        with pytest.raises(InputError, match=r"models.a needs cells .* one side is 1.50 times the other, expected at"):
            check_cells("a", models.OPTIONS[kind].model_validate({}), 1.5)
    check_cells("a", models.OPTIONS["persistence"].model_validate({}), 1.5)


@pytest.mark.parametrize(
    ("y", "x", "units", "ratio"),
    [
        ([0.0, 2.0, 4.0], [0.0, 3.0], ("km", "km"), 1.5),
        ([0.0, 2.0, 4.0], [0.0, 2000.0], ("km", "m"), 1.0),
        ([61.0, 60.0, 59.0], [0.0, 1.0], ("degrees_north", "degrees_east"), 2.0),
        ([0.0, 1.0], [5.0], ("1", "1"), 1.0),
    ],
)
def test_sides_of_a_cell(y, x, units, ratio):
    axes = {"y": ("y", y, {"units": units[0]}), "x": ("x", x, {"units": units[1]})}
    signature = signature_of(xr.Dataset(coords=axes), [], np.timedelta64(1, "h"), np.datetime64("2020-01-01", "ns"))
    assert signature.cell_ratio == pytest.approx(ratio)
