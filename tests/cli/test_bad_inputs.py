"""Bad inputs by rule through the function behind `fieldcast check`: each is refused in lines, by no other error."""

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fieldcast.pipeline import config
from fieldcast.pipeline.cli.check import facts_of
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source
from tests.campaign import size
from tests.cli.bad_files import spoilt_files
from tests.cli.bad_inputs import Case, schema_cases, yaml_cases


def drawn(cases: list[Case], short: int) -> list[Case]:
    """Return some of the cases, or all in a campaign."""
    count = size(short, len(cases))
    return cases if count >= len(cases) else random.Random(7).sample(cases, count)


@pytest.mark.parametrize(("cases", "least"), [(schema_cases, 900), (yaml_cases, 100)])
def test_bad_parameters_are_refused(
    tmp_path: Path, small: dict[str, Any], cases: Any, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    every = list(cases(small))
    assert len(every) >= least
    path = tmp_path / "params.yaml"
    wrong = []
    chosen = drawn(every, 150)
    for what, text in chosen:
        path.write_text(text, encoding="utf-8")
        try:
            facts_of(path)
            wrong.append(f"{what}: accepted")
        except InputError as error:
            lines = str(error).splitlines()
            if not all(line.isprintable() and len(line) < 1000 for line in lines) or len(lines) > 60:
                wrong.append(f"{what}: {error}")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
    tell(capsys, f"{len(chosen) - len(wrong)} of {len(chosen)} bad parameters refused (of {len(every)})")
    assert wrong == []


def tell(capsys: pytest.CaptureFixture[str], line: str) -> None:
    """Print a count, past pytest's own capture."""
    with capsys.disabled():
        sys.stdout.write(f"{line}\n")


@pytest.mark.filterwarnings("ignore")  # of the readers, on what is spoilt
def test_spoilt_files_end_in_lines(tmp_path: Path, small: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is cut or of another kind is refused; one with a flipped bit may pass, but ends in no other error."""
    made = tmp_path / "made"
    made.mkdir()
    cases = list(spoilt_files(made, size(3, 30)))
    if size(0, 1) == 0:
        cases = random.Random(7).sample(cases, 60)
    wrong, refused = [], 0
    for number, (what, source, name, content) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / name).write_bytes(content)
        place = {"train_images": str(folder / name), "test_images": str(folder / name)}
        options = {**source, **(place if source["kind"] == "moving_mnist" else {"path": str(folder / name)})}
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump({**small, "source": options, "models": {"p": {"kind": "persistence"}}}))
        try:
            inspect_source(config.read(path).source)
            if "flipped" not in what and "after its end" not in what and "cut" not in what:
                wrong.append(f"{what}: accepted")
        except InputError as error:
            refused += 1
            if "\n" in str(error) or not str(error).isprintable():
                wrong.append(f"{what}: {error}")
        except Exception as error:
            wrong.append(f"{what}: {type(error).__name__}: {error}")
    tell(capsys, f"{refused} of {len(cases)} spoilt files refused, {len(wrong)} wrongly treated")
    assert wrong == []
