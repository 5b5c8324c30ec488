"""Long forms of tests run in campaigns alone, and `make campaign` runs all of them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.campaign import size
from tests.conftest import ROOT

CONFTEST = (ROOT / "tests/conftest.py").read_text()
TESTS = """
import pytest

@pytest.mark.campaign
def test_long():
    pass

def test_short():
    pass
"""


@pytest.mark.parametrize(("value", "expected"), [("1", 200), ("0", 20), (None, 20)])
def test_sizes(monkeypatch: pytest.MonkeyPatch, value: str | None, expected: int) -> None:
    monkeypatch.delenv("FIELDCAST_CAMPAIGN", raising=False)
    if value is not None:
        monkeypatch.setenv("FIELDCAST_CAMPAIGN", value)
    assert size(20, 200) == expected


@pytest.mark.parametrize(("value", "expected"), [("1", "2 passed"), ("0", "1 passed, 1 deselected")])
def test_marked_tests_are_left_out_of_the_suite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, expected: str
) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_both.py").write_text(TESTS)
    monkeypatch.setenv("FIELDCAST_CAMPAIGN", value)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", str(tmp_path)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert expected in process.stdout, process.stdout + process.stderr


def test_make_names_every_file_with_a_long_form() -> None:
    listed = subprocess.run(
        ["make", "--dry-run", "campaign"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    (command,) = re.findall(r"\$\((grep .*?)\)", listed)
    files = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    uses = ("from tests.campaign import", "\n@pytest.mark.campaign\n")
    long = {path for path in (ROOT / "tests").rglob("test_*.py") if any(use in path.read_text() for use in uses)}
    assert {ROOT / file for file in files} == long != set()
