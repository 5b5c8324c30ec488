"""The wheel: all code below `fieldcast/`, templates included, and nothing beside it."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from docs.tools.imports import ROOT, modules

BUILD = "from setuptools.build_meta import build_wheel; build_wheel('dist')"  # what pip calls


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Return the names of the files in a wheel that is built from a copy of the repository."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in ("fieldcast", "pipeline", "models", "examples"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, folder)
    built = subprocess.run([sys.executable, "-c", BUILD], cwd=folder, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (path,) = (folder / "dist").glob("*.whl")
    return set(zipfile.ZipFile(path).namelist())


def test_all_modules_are_below_one_name(wheel: set[str]) -> None:
    paths = {Path("fieldcast") / path.relative_to(ROOT) for path in modules().values()}
    assert {name for name in wheel if name.endswith(".py")} == {"fieldcast/__init__.py", *map(str, paths)}
    assert {name.split("/")[0] for name in wheel if ".dist-info" not in name} == {"fieldcast"}


def test_templates_are_there(wheel: set[str]) -> None:
    templates = {f"fieldcast/{path.relative_to(ROOT)}" for path in (ROOT / "pipeline").rglob("*.j2")}
    assert {name for name in wheel if name.endswith(".j2")} == templates != set()
    assert {
        "fieldcast/stages.yaml",
        "fieldcast/params.yaml",
        "fieldcast/examples/era5-uk.yaml",
    } <= wheel  # of which `fieldcast init` makes a project
