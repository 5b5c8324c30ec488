"""Bad inputs by rule through the function behind `fieldcast check`: each is refused in lines, by no other error."""

import random
from pathlib import Path
from typing import Any

import pytest

from fieldcast.pipeline.cli.check import facts_of
from fieldcast.pipeline.errors import InputError
from tests.campaign import size
from tests.cli.bad_inputs import Case, schema_cases, yaml_cases


def drawn(cases: list[Case], short: int) -> list[Case]:
    """Return some of the cases, or all in a campaign."""
    count = size(short, len(cases))
    return cases if count >= len(cases) else random.Random(7).sample(cases, count)


@pytest.mark.parametrize(("cases", "least"), [(schema_cases, 900), (yaml_cases, 100)])
def test_bad_parameters_are_refused(tmp_path: Path, small: dict[str, Any], cases: Any, least: int) -> None:
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
    print(f"{len(chosen)} of {len(every)} bad parameters refused, {len(wrong)} not")  # noqa: T201
    assert wrong == []
