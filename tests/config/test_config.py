from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from fieldcast import models
from fieldcast.pipeline import config
from fieldcast.pipeline.errors import InputError, run_stage
from tests.conftest import ROOT, merged


@pytest.fixture
def written(tmp_path: Path, small: dict[str, Any]):
    def write(changes: dict[str, Any]) -> Path:
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(merged(small, changes)))
        return path

    return write


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"train": {"epoch": 3}}, "train.epoch is 3: unknown key; remove it or correct its spelling"),
        ({"train": {"epochs": "many"}}, "train.epochs is 'many': Input should be a valid integer"),
        ({"train": {"epochs": 0}}, "train.epochs is 0: Input should be greater than 0"),
        (
            {"models": {"rnn": {"kind": "rnn"}}},
            "rnn is of the unknown kind 'rnn', expected one of persistence, climatology",
        ),
        ({"models": {"convlstm": {"kernel": 4}}}, "convlstm.kernel is 4: kernel must be odd"),
        ({"models": {"convlstm": {"kernels": 3}}}, "convlstm.kernels is 3: unknown key"),
        ({"verify": {"thresholds": {"rain_rate": [1, 0.5]}}}, "expected a rising list such as [0.5, 1, 2]"),
        ({"verify": {"neighbourhoods_km": [10, 2]}}, "verify.neighbourhoods_km"),
        ({"models": {"rnn": {}}}, "rnn has no kind, expected one of persistence, climatology"),
        ({"models": {"U-Net": {"kind": "recurrent"}}}, "models.U-Net"),
        (
            {"kinds": {"wide": "recurrent"}},
            "the section kinds is gone; state each model's kind with its options, such as models: {wide: {kind: rec",
        ),
        (
            {
                "kinds": {"wide": "recurrent"},
                "train": {"teacher": {"schedule": "linear"}, "rollout": {"start_leads": 1, "until": 0.5}},
            },
            "models: {wide: {kind: recurrent}}; train.teacher is called scheduled_sampling now; train.rollout.until is"
            " called ramp_fraction now",
        ),
        ({"source": {"kind": "satellite"}}, "source"),
        ({"source": {"cell": 3}}, "source.cell is 3: unknown key"),
        ({"prepare": {"transform": {"rain_rate": {"kind": "identity", "floor": 1}}}}, "floor has no effect"),
        (
            {"prepare": {"splits": {"train": {"start": "2024-06-02", "end": "2024-06-01"}}}},
            "prepare.splits.train: the period is empty: end 2024-06-01 00:00:00 is before start",
        ),
        ({"prepare": {"splits": {"train": {"start": "2024-06-01T00:00+02:00"}}}}, "times are UTC and written without"),
        ({"track": {"experiment": "a b"}}, "track.experiment is 'a b'"),
        ({"track": {"experiment": ".."}}, "track.experiment is '..'"),
        ({"models": {"x; touch marker": {"kind": "persistence"}}}, "models.x; touch marker: expected a name of small"),
        ({"models": {"convlstm": {"temporal_mixer": "convgru"}}}, "models.convlstm.temporal_mixer is called cell now"),
        ({"models": {"vt": {"smooth": True}}}, "models.vt.smooth is gone: convolutions join the patches of a video"),
        (
            {"models": {"convlstm": {"hidden": [10**9]}}},
            "models.convlstm: hidden is 1000000000, expected at most 65536",
        ),
        ({"train": {"epochs": "3"}}, "train.epochs is '3': Input should be a valid integer"),
        ({"train": {"epochs": True}}, "train.epochs is True: Input should be a valid integer"),
        ({"train": {"seed": 2**32}}, "train.seed is 4294967296: Input should be less than 4294967296"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate is inf: Input should be a finite number"),
        (
            {"train": {"learning_rate": 1e6}},
            "train.learning_rate is 1000000.0: Input should be less than or equal to 10",
        ),
        (
            {"verify": {"thresholds": {"rain_rate": [float("nan")]}}},
            "thresholds.rain_rate.0 is nan: Input should be a f",
        ),
        ({"train": {"devices": "many"}}, "train.devices is 'many'"),
        ({"train": {"strategy": "magic"}}, "train.strategy is 'magic'"),
        ({"train": {"strategy": "fsdp"}}, "train.strategy is 'fsdp': sharded weights go neither with gradient_clip"),
        ({"train": {"strategy": "fsdp_native"}}, "expected auto or ddp, where every device holds the whole network"),
        ({"prepare": {"targets": ["a", "a"]}}, "targets has a name twice"),
        ({"prepare": {"splits": {"test": {"start": 2024}}}}, "prepare.splits.test.start is 2024"),
        ({"prepare": {"splits": {"test": {"start": "0001-01-01"}}}}, "expected a year from 1678 to 2261"),
        (
            {"prepare": {"splits": {"test": {"start": "2024-05-01", "end": "2024-05-02"}}}},
            "prepare.splits: test starts at 2024-05-01 00:00:00, expected after train and validation, which end",
        ),
        ({"verify": {"regions": {"sea": {"y": [1, 1], "x": [0, 1]}}}}, "y is from 1 to 1, expected two different ends"),
        (
            {"promotion": {"guards": {"min_coverage": 0.9, "max_coverage": 0.8}}},
            "min_coverage 0.9 is above max_coverage",
        ),
    ],
)
def test_bad_value_is_one_line_that_names_its_place(written, changes: dict[str, Any], expected: str) -> None:
    path = written(changes)
    with pytest.raises(InputError) as caught:
        config.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert expected in message
    assert "\n" not in message


def test_all_faults_of_a_file_have_a_line_each(written, capsys: pytest.CaptureFixture[str]) -> None:
    faults = {"train": {"epochs": 0, "epoch": 3}, "models": {"convlstm": {"kernel": 4, "stem": 0}, "A": {}}}
    path = written(faults)
    with pytest.raises(SystemExit):
        run_stage(lambda: config.read(path))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 5
    assert all(line.startswith(f"fieldcast: {path}: ") for line in lines)
    places = ("train.epochs", "train.epoch ", "models.convlstm.kernel", "models.convlstm.stem", "models.A")
    assert all(any(place in line for line in lines) for place in places)


def test_the_model_of_a_stage(written, monkeypatch: pytest.MonkeyPatch) -> None:
    params = config.read(written({}))
    monkeypatch.setattr("sys.argv", ["train"])
    monkeypatch.setenv("DVC_STAGE", "sub/dvc.yaml:train@convlstm")
    assert config.named_model("", params) == "convlstm"
    monkeypatch.setenv("DVC_STAGE", "train@../convlstm")
    with pytest.raises(InputError, match=r"models has no '../convlstm', expected one of adv"):
        config.named_model("", params)
    monkeypatch.setattr("sys.argv", ["train", "--model", "persistence"])
    assert config.named_model("", params) == "persistence"


def test_missing_broken_and_empty_files(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    with pytest.raises(InputError, match="no such file"):
        config.read(path)
    path.write_text("a: [1")
    with pytest.raises(InputError, match="not valid YAML"):
        config.read(path)
    path.write_text("- 1")
    with pytest.raises(InputError, match="expected sections"):
        config.read(path)


def test_all_examples_and_the_default_are_valid() -> None:
    files = [ROOT / "params.yaml", *sorted((ROOT / "examples").glob("*.yaml"))]
    assert len(files) == 9
    for path in files:
        params = config.read(path)
        kinds = {entry.kind for entry in params.models.values()}
        short = path.stem in ("bom-radar", "fmi-radar", "rmi-radar")  # events for the default networks alone
        assert kinds >= {"persistence", *(["unet"] if short else ["recurrent", "video_transformer"])}, path
        if path.stem.endswith("-variants"):  # as many networks as there is time for, one value a cell
            assert len(set(params.models) - set(models.REFERENCES)) >= 8, path
        elif path.stem != "moving-mnist":  # digits have no weather to be unsure of
            assert any(getattr(entry.options, "output", "") == "quantiles" for entry in params.models.values()), path


def only(path: Path, models: dict[str, Any], **top: Any) -> Path:
    """Return `path` with these models alone, and further keys beside the sections."""
    content = yaml.safe_load(path.read_text()) | {"models": models} | top
    path.write_text(yaml.safe_dump(content))
    return path


LEARNED, REFERENCE = {"convlstm": {"kind": "recurrent"}}, {"still": {"kind": "persistence"}}


def test_references_are_part_of_a_project(written) -> None:
    with pytest.raises(InputError) as caught:
        config.read(only(written({}), LEARNED))
    assert str(caught.value).endswith(
        "params.yaml: the file: models has no reference, without which no forecast is known to be of use; add some, "
        "such as persistence: {kind: persistence}, or say so by references: none"
    )
    assert config.read(only(written({}), LEARNED, references="none")).references == "none"
    assert config.read(only(written({}), LEARNED | REFERENCE)).references is None
    with pytest.raises(InputError, match="references is 'none', but models has still: remove one of the two lines"):
        config.read(only(written({}), REFERENCE, references="none"))
    with pytest.raises(InputError, match=r"references is 'few': Input should be 'none'"):
        config.read(only(written({}), REFERENCE, references="few"))


def test_gap_between_splits(written) -> None:
    params = config.read(written({"prepare": {"splits": {"validation": {"start": "2024-06-01T14:00"}}}}))
    step = timedelta(minutes=5)
    with pytest.raises(
        InputError, match=r"validation.start is 2024-06-01 14:00:00, 0:20:00 after the end of train.*7 st"
    ):
        config.check_gaps(params.prepare.splits, 3, 4, step)
    config.check_gaps(params.prepare.splits, 2, 2, step)  # exactly the gap


def test_run_stage_ends_with_code_2_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def stage() -> None:
        raise InputError("params.yaml: no")

    with pytest.raises(SystemExit) as caught:
        run_stage(stage)
    assert caught.value.code == 2
    assert capsys.readouterr().err == "fieldcast: params.yaml: no\n"
