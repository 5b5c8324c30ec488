"""The list of mutations is fresh: `make mutations` runs them."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.campaign import size
from tests.conftest import ROOT
from tests.mutations.__main__ import is_killed, mutate
from tests.mutations.guards import MUTATIONS, SURVIVORS
from tests.mutations.mutation import Mutation


def functions(names: Iterable[str]) -> set[str]:
    return {name.partition("::")[0] for name in names}


def test_there_are_many_and_no_two_alike() -> None:
    assert len(MUTATIONS) >= 40
    assert len({(each.file, each.old) for each in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: f"{Path(each.file).stem}: {each.old.strip()[:40]}")
def test_every_guard_stands_once_and_its_test_exists(mutation: Mutation, tmp_path: Path) -> None:
    copy = tmp_path / "file.py"
    copy.write_text((ROOT / mutation.file).read_text("utf-8"), "utf-8")
    mutate(copy, mutation)
    compile(copy.read_text("utf-8"), mutation.file, "exec")
    file, _, name = mutation.test.partition("::")
    assert f"def {name}" in (ROOT / file).read_text("utf-8")


def test_survivors_are_named_in_the_documentation() -> None:
    page = (ROOT / "docs/reliability.md").read_text("utf-8")
    assert all(survivor in page for survivor in SURVIVORS)


@pytest.mark.slow
def test_a_mutation_is_noticed() -> None:
    for mutation in MUTATIONS[-8 : -8 + size(1, 3)]:
        assert is_killed(mutation), mutation
