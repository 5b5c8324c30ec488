"""`dvc.yaml` against the code: a stage depends on the packages that it imports and on the parameters that it reads."""

import re

import pytest
import yaml

from docs.tools.imports import ROOT, closure, direct, modules
from fieldcast.models import KINDS
from fieldcast.models.layers.outputs import BASES
from fieldcast.pipeline import train

STAGES = {
    name: stage.get("do", stage) for name, stage in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].items()
}
PARAMS = yaml.safe_load((ROOT / "params.yaml").read_text())
MOST_DEPENDENCIES = 55  # on code, in all
MOVES_FIELDS = {"compare"}  # without running a model
RUNS_MODELS = {"train", "forecast"}  # the others know kinds by name, and their options as `config` checks them
RESULTLESS = {"dask"}  # where work runs changes no result
TRACKED_ONLY = {"track"}  # nor does where it is recorded


def code_dependencies(stage: str) -> set[str]:
    """Return the packages and files that the stage's module imports, directly or through others.

    The table of kinds in `models/__init__.py` holds no code that runs, and a stage depends on one kind: a new one
    reruns nothing.
    """
    places = set()
    for name in closure(f"fieldcast.pipeline.{stage}"):
        place = modules()[name].relative_to(ROOT)
        top, *rest = place.parts
        if top == "models" or rest == ["__init__.py"]:
            continue
        places.add("/".join((top, rest[0])))
    if stage in RUNS_MODELS:
        places |= {"models/layers", "models/${item.kind}"}
    if stage in MOVES_FIELDS:
        places.add("models/layers")
    if stage == "check":  # leaves their digests, and reads what params.yaml extends
        places |= {f"models/{kind}" for kind in BASES} | {"examples"}
    if stage == "train":
        places.add("pipeline/tracking")  # MLflow runs `pyfunc`
    return places


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_dependencies_are_the_imports(stage: str) -> None:
    declared = {path for path in STAGES[stage]["deps"] if not path.startswith("data/")}
    assert declared == code_dependencies(stage)


@pytest.mark.parametrize("stage", sorted(RUNS_MODELS))
def test_what_runs_a_model_depends_on_its_base(stage: str) -> None:
    assert "data/checked/bases/${key}" in STAGES[stage]["deps"]


def test_dependencies_are_few() -> None:
    assert sum(not path.startswith("data/") for stage in STAGES.values() for path in stage["deps"]) <= MOST_DEPENDENCIES


def test_kinds_import_layers_and_themselves_alone() -> None:
    for name, others in direct().items():
        kind = name.removeprefix("fieldcast.models.").split(".")[0]
        if kind in KINDS:
            strangers = {other for other in others if other.startswith("fieldcast.models.")}
            assert {other.split(".")[2] for other in strangers} <= {kind, "layers"}, name


def test_a_training_goes_on_with_the_code_that_dvc_watches() -> None:
    declared = {path for path in STAGES["train"]["deps"] if not path.startswith("data/")}
    assert declared == {*train.DEPENDENCIES, "models/${item.kind}"}


def parameters(stage: str) -> list[str] | None:
    """Return the parameters that a stage depends on; None for all of them. All but `check` take those it leaves."""
    (file,) = STAGES[stage]["params"]
    assert list(file) == ["params.yaml" if stage == "check" else "data/checked/params.json"]
    names: list[str] | None = next(iter(file.values()))
    return names


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_params_are_what_the_stage_reads(stage: str) -> None:
    declared = parameters(stage)
    if declared is None:  # the report shows all of them
        return
    text = (ROOT / "pipeline" / f"{stage}.py").read_text()
    if stage == "train":
        text += (ROOT / "pipeline" / "training" / "fit.py").read_text()
    read = set(re.findall(r"params\.([a-z_]+)", text)) & set(PARAMS) | set(re.findall(r"load\(\)\.([a-z_]+)", text))
    sections = {name.split(".")[0] for name in declared}
    assert read - RESULTLESS - TRACKED_ONLY == sections - TRACKED_ONLY


def test_stages_are_made_of_the_models() -> None:
    written = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage in ("train", "forecast", "verify"):
        assert written[stage]["foreach"] == "${models}"
        assert STAGES[stage]["cmd"] == f"python -m fieldcast.pipeline.{stage}"


def test_every_stage_is_a_module_of_its_name() -> None:
    for stage, content in STAGES.items():
        assert content["cmd"].startswith(f"python -m fieldcast.pipeline.{stage}")
