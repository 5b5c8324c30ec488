import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from fieldcast.pipeline.cli.check import facts_of
from fieldcast.pipeline.cli.main import app
from fieldcast.pipeline.errors import InputError
from tests.conftest import ROOT, merged


def fieldcast(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from fieldcast.pipeline.cli.main import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={"PYTHONPATH": str(ROOT), "PATH": ""})


COMMANDS: dict[str, Any] = vars(typer.main.get_command(app))["commands"]


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_can_be_parsed(name: str) -> None:
    command = COMMANDS[name]
    example = re.match(r"Example: `fieldcast ([^`]*)`", command.epilog or "")
    assert example is not None
    words = example[1].split()
    assert words[0] == name
    command.make_context(name, words[1:])  # parses, and runs nothing; raises for a wrong option
    with pytest.raises(Exception, match="No such option"):
        command.make_context(name, ["--no-such-option"])


def test_help_loads_nothing_heavy() -> None:
    code = "import sys, fieldcast.pipeline.cli.main; "
    code += "print([m for m in ('torch', 'mlflow', 'xarray', 'pysteps') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "[]"


def test_check_prints_the_size_of_a_run(tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small))
    facts = facts_of(tmp_path / "params.yaml")
    assert facts["frames"] == "120 of 380 (260 missing)"
    assert facts["variables"] == "rain_rate [mm h-1]"
    assert facts["init times"] == "train 42, validation 5, test 7"
    assert facts["training"] == "42 samples, 2 epochs, 12 steps of 8"
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["check", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout) == facts
    assert "rain_rate [mm h-1]" in CliRunner().invoke(app, ["check"]).stdout  # brackets are no markup


def test_check_names_all_faults_at_once(tmp_path: Path, small: dict[str, Any]) -> None:
    changes = {
        "live": {"schedule": {"cron": "0 0 31 2 *"}},
        "sample": {"crop_cells": 99},
        "promotion": {"leads_minutes": [35]},
        "verify": {"thresholds": {"t2m": [1.0]}},
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged(small, changes)))
    with pytest.raises(InputError) as caught:
        facts_of(tmp_path / "params.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for place in ("live.schedule.cron", "sample.crop_cells", "promotion.leads_minutes", "verify.thresholds"):
        assert any(place in line for line in lines), place


def test_neighbourhoods_need_rows_and_units(tmp_path: Path, small: dict[str, Any]) -> None:
    one_row = {"source": {"crop": {"y": [0, 1], "x": [0, 24]}}, "models": {"persistence": {"kind": "persistence"}}}
    content = {**merged(small, {"source": one_row["source"]}), "models": one_row["models"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"verify.neighbourhoods_km: coordinate 'y' has 1 cell"):
        facts_of(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"epoch": 3}}, "train.epoch is 3: unknown key"),
        ({"sample": {"horizon": 30}}, "longer than the longest event of 20 consecutive frames"),
        ({"sample": {"crop_cells": 99}}, "sample.crop_cells is 99, larger than the grid of 24 x 24"),
        ({"sample": {"crop_cells": 16}, "forecast": {"online": {}}}, "forecast.online learns from whole fields"),
        ({"source": {"crop": {"y": [0, 90], "x": [0, 10]}}}, "crop"),
        ({"source": {"period": ["2030-01-01", "2030-01-02"]}}, "period"),
        ({"verify": {"thresholds": {"t2m": [1.0]}}}, "verify.thresholds names 't2m'"),
        ({"prepare": {"transform": {"t2m": {"kind": "log"}}}}, "prepare.transform names 't2m'"),
        ({"prepare": {"splits": {"validation": {"start": "2024-06-01T14:00"}}}}, "validation.start is"),
        (
            {"promotion": {"leads_minutes": [5, 35]}},
            "leads_minutes names 35, forecasts are for 5 to 20 minutes",
        ),
        (
            {"verify": {"thresholds": {"rain_rate": [1e-9, 4000.0]}}},
            "rain_rate has 4000 mm h-1, expected more",
        ),
        ({"verify": {"thresholds": {"rain_rate": [-1.0, 1.0]}}}, "verify.thresholds.rain_rate has -1 mm h-1"),
        (
            {"verify": {"neighbourhoods_km": [1e-9]}},
            "neighbourhoods_km has 1e-09, less than half of a cell of 2",
        ),
        ({"promotion": {"leads_minutes": [10, 10]}}, "a lead is there twice"),
        ({"live": {"copies": ["netcdf", "netcdf"]}}, "one is there twice"),
        ({"live": {"limits": {"t2m": [200, 300]}}}, "live.limits names 't2m', models read rain_rate"),
        ({"live": {"limits": {"rain_rate": [None, None]}}}, "expected a lower or an upper limit, found none"),
        ({"live": {"late_data": {"max_missing_frames": 9}}}, "max_missing_frames is 9, expected less than the"),
        ({"train": {"learning_rate": 1e-300}}, "train.learning_rate is 1e-300"),
        ({"verify": {"regions": {"sea": {"y": [1e9, 2e9], "x": [0, 1]}}}}, "verify.regions.sea.y is"),
        (
            {"prepare": {"splits": {"test": {"start": "2024-07-01T00:00", "end": "2024-07-02T00:00"}}}},
            "prepare.splits.test",
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(
    tmp_path: Path, small: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged(small, changes)))
    with pytest.raises(InputError) as caught:
        facts_of(tmp_path / "params.yaml")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, small: dict[str, Any]) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged(small, {"train": {"epoch": 3}})))
    result = fieldcast("check", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("fieldcast: params.yaml: train.epoch is 3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["params.yaml"]


@pytest.mark.parametrize(
    ("out", "expected"), [("mine", "mine holds thesis.tex"), ("params.yaml", "params.yaml is a file")]
)
def test_a_comparison_replaces_nothing_else(
    tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch, out: str, expected: str
) -> None:
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(small))
    (tmp_path / "mine" / "figures").mkdir(parents=True)
    (tmp_path / "mine" / "figures" / "holiday.png").touch()
    (tmp_path / "mine" / "thesis.tex").touch()
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["compare", "convlstm", "--out", out])
    assert isinstance(result.exception, InputError)  # exit code 2, see above
    assert expected in str(result.exception)
    assert (tmp_path / "mine" / "figures" / "holiday.png").exists()


def test_the_version_is_told() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output == f"fieldcast {metadata.version('fieldcast')}\n"


def test_shells_complete_commands() -> None:
    words = {"_FIELDCAST_COMPLETE": "complete_bash", "COMP_WORDS": "fieldcast sc", "COMP_CWORD": "1"}
    script = Path(sys.executable).with_name("fieldcast")
    result = subprocess.run([script], env={**os.environ, **words}, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["schema"]
