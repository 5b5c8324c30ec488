"""`extends`: a params file holds the differences from an example."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fieldcast.models import LEARNED
from fieldcast.pipeline import check, config
from fieldcast.pipeline.errors import InputError
from tests.conftest import ROOT, merged


@pytest.fixture
def base(tmp_path: Path, small: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return the content of `examples/base.yaml` in an own folder, the working directory."""
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples/base.yaml").write_text(yaml.safe_dump(small))
    monkeypatch.chdir(tmp_path)
    return small


def written(changes: dict[str, Any], name: str = "params.yaml", **more: Any) -> Path:
    models = {"models": {"persistence": {"kind": "persistence"}}}
    Path(name).write_text(yaml.safe_dump({"extends": "examples/base.yaml", **models, **changes, **more}))
    return Path(name)


def test_what_is_left_out_is_inherited(base: dict[str, Any]) -> None:
    changes = {"train": {"epochs": 7}, "verify": {"neighbourhoods_km": [4]}}
    models = {"persistence": {"kind": "persistence"}}
    Path("whole.yaml").write_text(yaml.safe_dump(merged(base, changes) | {"models": models}))
    assert config.read(written(changes)) == config.read(Path("whole.yaml"))


def test_another_kind_takes_the_place_of_the_whole(base: dict[str, Any]) -> None:
    params = config.read(
        written(
            {
                "source": {"kind": "radar", "path": "archive", "format": "fmi"},
                "prepare": {"transform": {"rain_rate": {"kind": "identity"}}},
            }
        )
    )
    assert params.source.kind == "radar"
    assert params.prepare.transform["rain_rate"].kind == "identity"


def test_an_example_may_extend_an_example(base: dict[str, Any]) -> None:
    written({"train": {"epochs": 9}}, "examples/middle.yaml")
    params = config.read(written({"sample": {"horizon": 2}}, extends="examples/middle.yaml"))
    assert (params.train.epochs, params.sample.horizon, params.sample.history) == (9, 2, base["sample"]["history"])


def test_errors_name_the_file_that_the_key_is_from(base: dict[str, Any]) -> None:
    Path("examples/base.yaml").write_text(yaml.safe_dump(merged(base, {"train": {"epochs": 0, "batch_size": 0}})))
    with pytest.raises(InputError) as caught:
        config.read(written({"train": {"epochs": -1}, "sample": {"histories": 3}}))
    assert sorted(str(caught.value).splitlines()) == [
        "examples/base.yaml: train.batch_size is 0: Input should be greater than 0",
        "params.yaml: sample.histories is 3: unknown key; remove it or correct its spelling",
        "params.yaml: train.epochs is -1: Input should be greater than 0",
    ]


def test_what_cannot_be_extended_is_refused(base: dict[str, Any]) -> None:
    written({}, "examples/loop.yaml", extends="examples/loop.yaml")
    for named, words in (
        ("base.yaml", "extends is 'base.yaml', expected a file below examples/"),
        ("examples/../base.yaml", "expected a file below examples/"),
        (["examples/base.yaml"], "expected a file below examples/"),
        ("examples/none.yaml", "no such file below .; fieldcast itself has bom-radar.yaml, era5-uk.yaml"),
        ("examples/loop.yaml", "examples/loop.yaml: extends examples/loop.yaml, which extends it in turn"),
    ):
        with pytest.raises(InputError) as caught:
            config.read(written({}, extends=named))
        assert words in str(caught.value)
    Path("params.yaml").write_text("extends: examples/base.yaml\n")
    with pytest.raises(InputError, match=r"params.yaml: models is missing; it is not inherited from examples/base"):
        config.read(Path("params.yaml"))


def test_examples_of_the_package_are_there_in_any_folder(base: dict[str, Any]) -> None:
    params = config.read(written({}, extends="examples/era5-uk.yaml"))
    assert params.track.experiment == "era5-uk"


def test_dvc_sees_inherited_values_and_defaults_and_no_password(base: dict[str, Any]) -> None:
    written({"live": {"source": {"kind": "gridded", "path": "s3://a/b.zarr", "variables": ["t"]}}})
    with Path("params.yaml").open("a") as file:
        file.write("prepare: {max_missing_history: 1}\n")
    check.main()
    left = yaml.safe_load(Path("data/checked/params.json").read_text())
    assert left["train"]["epochs"] == base["train"]["epochs"]
    assert left["prepare"]["splits"]["test"]["every_steps"] == 2
    assert left["prepare"]["max_missing_history"] == 1
    assert left["forecast"]["overlap_cells"] == 16
    assert left["models"] == {"persistence": {"kind": "persistence"}}
    secret = {"kind": "gridded", "path": "s3://a/b.zarr", "variables": ["t"], "storage_options": {"secret": "x1y2z3"}}
    written({"live": {"source": secret}})
    check.main()
    assert "x1y2z3" not in Path("data/checked/params.json").read_text()


@pytest.mark.parametrize(("name", "base"), [("knmi-variants", "lagrangian_regression"), ("era5-variants", "linear")])
def test_variants_hold_differences_alone(name: str, base: str) -> None:
    content = yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())
    assert content["extends"].startswith("examples/")
    assert not {"source", "sample", "prepare"} & set(content)
    params = config.read(ROOT / "examples" / f"{name}.yaml")
    assert params.train.max_minutes == 0.75
    assert {entry.options.base for entry in params.models.values() if entry.kind in LEARNED} == {base}
