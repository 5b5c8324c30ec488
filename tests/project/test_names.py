"""Names in `params.yaml` under DVC: none is run by a shell."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT
from tests.project.test_end_to_end import ENVIRONMENT

pytestmark = pytest.mark.slow

NAMES = ("x; touch marker", "$(touch marker)", "a'`touch marker`'b")


@pytest.fixture
def hostile(tmp_path: Path, small: dict[str, Any]) -> Path:
    """Return a project without code of its own whose models have hostile names."""
    for name in ("fieldcast", "pipeline", "models", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, tmp_path / name)
    content = {**small, "models": {name: {"kind": "persistence"} for name in NAMES}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    subprocess.run(["dvc", "init", "--no-scm", "-q"], cwd=tmp_path, env=ENVIRONMENT, check=True)
    return tmp_path


def test_a_repro_stops_at_the_first_stage(hostile: Path) -> None:
    process = subprocess.run(["dvc", "repro"], cwd=hostile, env=ENVIRONMENT, capture_output=True, text=True)
    assert process.returncode != 0
    assert "expected a name of small letters" in process.stderr
    assert not (hostile / "marker").exists()
    assert not (hostile / "data" / "observations.zarr").exists()


def test_a_stage_by_itself_runs_no_name(hostile: Path) -> None:
    stages = [f"verify@{name}" for name in NAMES]
    command = ["dvc", "repro", "--single-item", "--force", "--keep-going", *stages]
    process = subprocess.run(command, cwd=hostile, env=ENVIRONMENT, capture_output=True, text=True)
    assert process.returncode != 0
    assert all(f"Running stage '{stage}'" in process.stdout for stage in stages)
    assert not (hostile / "marker").exists(), process.stdout + process.stderr
