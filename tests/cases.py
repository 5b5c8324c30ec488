"""Small files with one fault each, beside the public example data; used in place."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "shared" / "data"


def case_file(name: str) -> Path:
    """Return a file or a glob below the folder of cases; its absence is a failure, not a reason to skip."""
    folder = Path(os.environ.get("FIELDCAST_TEST_DATA", ROOT)).parent / "cases"
    if not list(folder.glob(name)):
        pytest.fail(f"no case {folder / name}: set FIELDCAST_TEST_DATA to the folder beside cases/")
    return folder / name
