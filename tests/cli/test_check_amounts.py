from pathlib import Path

import pytest
import yaml

from fieldcast.pipeline import config
from fieldcast.pipeline.cli.check import check_amounts
from fieldcast.pipeline.errors import InputError

DEFAULT = Path(__file__).parents[2] / "params.yaml"


def params(tmp_path: Path, kind: str, models: dict[str, object]) -> config.Params:
    content = yaml.safe_load(DEFAULT.read_text())
    content["prepare"]["transform"] = {} if kind == "identity" else {"t": {"kind": kind, "floor": 0.1}}
    content["models"] = models
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    return config.read(tmp_path / "params.yaml")


def test_transforms_and_references_of_amounts_refuse_temperatures_and_decibels(tmp_path):
    persistence, steps = {"persistence": {"kind": "persistence"}}, {"steps": {"kind": "steps"}}
    check_amounts(params(tmp_path, "identity", persistence), {"t": "K"})
    check_amounts(params(tmp_path, "log", persistence | steps), {"t": "mm h-1"})
    with pytest.raises(InputError, match=r"transform\.t is log, but t is in K, expected an amount"):
        check_amounts(params(tmp_path, "log", persistence), {"t": "K"})
    with pytest.raises(InputError, match=r"models\.steps works in decibels of an amount, but t is in dBZ"):
        check_amounts(params(tmp_path, "identity", persistence | steps), {"t": "dBZ"})
