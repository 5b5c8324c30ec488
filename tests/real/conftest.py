import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def archive() -> Path:
    """Return the folder of public example data; its absence is a failure, not a reason to skip."""
    folder = Path(os.environ.get("FIELDCAST_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder / "radar").is_dir():
        pytest.fail(
            f"no test data at {folder}: set FIELDCAST_TEST_DATA to the folder that holds radar/, era5/ and mnist/"
        )
    return folder
