"""The JSON schema of params.yaml and the page of its keys: fresh, and of one mind with what reads the file."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from docs.tools import parameters
from fieldcast import models
from fieldcast.pipeline.cli import main as cli
from fieldcast.pipeline.cli.schema import schema
from fieldcast.pipeline.config.extends import read_extended
from fieldcast.pipeline.config.yaml_file import read_yaml
from tests.conftest import ROOT

FILES = [ROOT / "params.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    content = schema()
    Draft202012Validator.check_schema(content)
    return Draft202012Validator(content)


@pytest.mark.parametrize("path", [parameters.PAGE, parameters.SCHEMA], ids=["page", "schema"])
def test_what_is_made_from_the_classes_is_fresh(path: Path) -> None:
    assert path.read_text() == parameters.files()[path], "make parameters"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_that_are_read_are_valid(validator: Draft202012Validator, path: Path) -> None:
    validator.validate(read_yaml(path))
    validator.validate(read_extended(path)[0])


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"trian": {}}, []),
        ({"train": {"epochs": 0}}, ["train", "epochs"]),
        ({"live": {"drift": {"days": "two"}}}, ["live", "drift", "days"]),
        ({"live": {"copies": ["grib"]}}, ["live", "copies", 0]),
        ({"models": {"unet": {"kind": "unet", "chanels": 8}}}, ["models", "unet"]),
        ({"models": {"unet": {"kind": "net"}}}, ["models", "unet"]),
    ],
)
def test_wrong_keys_and_values_are_found(
    validator: Draft202012Validator, change: dict[str, Any], place: list[Any]
) -> None:
    content = {**read_yaml(ROOT / "params.yaml"), **change}
    assert place in [list(error.path) for error in validator.iter_errors(content)]


def test_comments_beside_fields_are_descriptions(validator: Draft202012Validator) -> None:
    definitions = validator.schema["$defs"]
    assert definitions["Live"]["properties"]["max_attempts"].get("description") is None
    assert definitions["Drift"]["properties"]["min_cycles"]["description"] == "fewer verified cycles raise no alarm"
    assert "description" not in definitions["Drift"]["properties"]["days"]
    kinds = validator.schema["properties"]["models"]["additionalProperties"]["oneOf"]
    assert [each["properties"]["kind"]["const"] for each in kinds] == list(models.OPTIONS)


def test_the_page_has_every_key() -> None:
    page = parameters.PAGE.read_text()
    for key in ("source.spacing_km", "prepare.splits.train.start", "live.notify.webhook", "live.late_data.fallback"):
        assert f"| `{key}` |" in page


def test_the_command_prints_the_schema(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["fieldcast", "schema"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out) == schema()
