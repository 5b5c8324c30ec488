"""Sizes of tests that have a short form in the suite and a full form in campaigns."""

import os


def size(short: int, full: int) -> int:
    """Return `full` under FIELDCAST_CAMPAIGN=1 (make campaign), else `short`."""
    return full if os.environ.get("FIELDCAST_CAMPAIGN") == "1" else short
