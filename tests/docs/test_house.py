"""Figures of the code against a small tree counted by hand."""

from pathlib import Path

import pytest

from docs.tools.house import Function, entries, figures, functions, look_alikes, sources

FIRST = '''"""Module."""

import os


class Thing:
    """A thing."""

    def shown(self):
        """Return one.

        And more.
        """
        value = os.getpid()
        return value

    def _hidden(self):
        def inner():
            return 1

        return inner


def bare():
    return 2
'''
SIX = "\n".join(f"a{i} = {i}" for i in range(6)) + "\n"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in (
        ("pipeline/ingest.py", FIRST),
        ("pipeline/live/__init__.py", '"""Live."""\n'),
        ("pipeline/live/clock.py", SIX),
        ("models/steps/forecast.py", SIX.replace("a0 = 0", "a0 = 9  # another number")),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_functions_by_hand(tree: Path) -> None:
    assert sorted(functions(tree / "pipeline" / "ingest.py"), key=lambda one: (one.body_lines, one.public)) == [
        Function(1, public=False, documented=False),  # inner
        Function(1, public=True, documented=False),  # bare
        Function(2, public=True, documented=True),  # shown
        Function(4, public=False, documented=False),  # _hidden
    ]


def test_files_belong_to_their_packages(tree: Path) -> None:
    found = {package: [path.name for path in paths] for package, paths in sources(tree).items()}
    assert found == {
        "pipeline": ["ingest.py"],
        "pipeline/live": ["__init__.py", "clock.py"],
        "models/steps": ["forecast.py"],
    }
    assert entries(tree) == {"models": 1, "models/steps": 1, "pipeline": 2, "pipeline/live": 1}


def test_look_alikes_differ_in_literals_or_names(tree: Path) -> None:
    one, other = tree / "pipeline" / "live" / "clock.py", tree / "models" / "steps" / "forecast.py"
    assert look_alikes([one]) == 0
    assert look_alikes([one, other]) == 1
    other.write_text(SIX.replace("a0", "b0"))
    assert look_alikes([one, other]) == 0
    assert look_alikes([one, other], names=False) == 1


def test_all_figures_are_in_the_text(tree: Path) -> None:
    text = figures(tree)
    assert "     38  in all, in 4 files" in text
    assert "functions: 4, body lines median 2, 90th percentile 3, longest 4" in text
    assert "public functions: 1 with a docstring, 1 without" in text
    assert "look-alike pairs of 6 lines: 1, with other names 1" in text
    assert "entries a folder: median 1, most in pipeline 2" in text


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="found none"):
        figures(tmp_path)
