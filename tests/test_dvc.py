"""`dvc.yaml` against the code: a stage depends on what it imports and on the parameters that it reads."""

import re

import pytest
import yaml

import models
from tests.imports import ROOT, closure, modules

STAGES = {
    name: stage.get("do", stage) for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
FOLDERS = {"pipeline.sources": "pipeline/sources", "pipeline.scores": "pipeline/scores"}
PER_MODEL = {"train", "forecast"}
RESULTLESS = {"dask"}  # where work runs changes no result
TRACKED_ONLY = {"track"}  # where it is recorded neither


def code_of(stage: str) -> set[str]:
    """Return the files and folders that the stage's module imports; a model's own folder is left to its kind."""
    folders = FOLDERS | ({"models.attention": "models/attention"} if stage in PER_MODEL else {})
    files = set()
    for name in closure(f"pipeline.{stage}"):
        if any(name == f"models.{model}" or name.startswith(f"models.{model}.") for model in models.OPTIONS):
            continue
        folder = next((path for start, path in folders.items() if name == start or name.startswith(start + ".")), None)
        files.add(folder or modules()[name].relative_to(ROOT).as_posix())
    if stage in PER_MODEL:  # a model is imported by its name, with what all models share
        files |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "models").glob("*.py")} | {
            "models/${item}",
            "models/attention",
        }
    if stage == "train":
        files.add("pipeline/served.py")  # MLflow runs it
    if stage == "compare":
        files.add("pipeline/report.html.j2")
    return files


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_deps_are_the_imports(stage: str) -> None:
    declared = {dep for dep in STAGES[stage]["deps"] if not dep.startswith("data/")}
    assert declared == code_of(stage)


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_params_are_what_the_stage_reads(stage: str) -> None:
    declared = STAGES[stage]["params"]
    if declared == [{"params.yaml": None}]:  # the report shows all of them
        return
    text = (ROOT / "pipeline" / f"{stage}.py").read_text()
    if stage == "train":
        text += (ROOT / "pipeline" / "fit.py").read_text()
    read = set(re.findall(r"params\.([a-z_]+)", text)) & set(PARAMS) | set(re.findall(r"load\(\)\.([a-z_]+)", text))
    sections = {name.split(".")[0] for name in declared}
    assert read - RESULTLESS - TRACKED_ONLY == sections - TRACKED_ONLY


def test_stages_are_made_of_the_models() -> None:
    assert list(PARAMS["kinds"]) == list(PARAMS["models"])
    written = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in ("train", "forecast", "verify"):
        assert written[stage]["foreach"] == "${kinds}"
        assert STAGES[stage]["cmd"] == f"python -m pipeline.{stage} --model ${{key}}"


def test_every_stage_is_a_module_of_its_name() -> None:
    for stage, content in STAGES.items():
        assert content["cmd"].startswith(f"python -m pipeline.{stage}")
