"""Publish until a small disk is full, at many sizes: run as a program by `test_crashes`, where it may mount disks."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.errors import CannotWriteError
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger
from fieldcast.pipeline.live.archive.publish import audit, open_forecasts, path_of
from tests.campaign import size
from tests.live.publishing import at, fields, grid, publish

KILOBYTES = [  # of a ledger without a cycle to five cycles; with a reserve
    *range(90, 570, size(96, 32)),
    *range(2200, 2550, size(175, 70)),
]
SIZE = (40, 60)
CYCLES = 6


def values(number: int) -> np.ndarray:
    made: np.ndarray = fields(at(number), size=SIZE)
    return made


def publish_until_full(folder: Path, reserve: float | None) -> tuple[list[int], list[str]]:
    """Return the numbers of the cycles that were published, and the messages of those that were not."""
    done, messages = [], []
    for number in range(CYCLES):
        try:
            publish(folder, at(number), values(number), on=grid(size=SIZE), reserve=reserve)
            done.append(number)
        except CannotWriteError as error:
            messages.append(str(error))
    return done, messages


def require_readable(folder: Path, done: list[int]) -> None:
    """Fail unless readers find the acknowledged forecasts, and only complete ones."""
    if not done:
        return
    forecasts = open_forecasts(folder).load()
    moments = [str(it)[:16] for it in forecasts["init_time"].values]
    for number in done:
        there = forecasts["rain_rate"][moments.index(f"{at(number):%Y-%m-%dT%H:%M}")]
        np.testing.assert_array_equal(there.values, values(number)[:, 0])


def main(folder: Path) -> None:
    """Fill disks of all sizes; then make each larger and go on."""
    whole = folder / "whole"
    for number in range(CYCLES):
        publish(whole, at(number), values(number), on=grid(size=SIZE))
    expected = [directory_digest(path_of(whole, at(number))) for number in range(CYCLES)]
    for kilobytes in KILOBYTES:
        disk = folder / f"disk{kilobytes}"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", disk], check=True)
        live = disk / "live"
        reserve = None if kilobytes < 1000 else 0.0  # None: as if another process filled the disk meanwhile
        done, messages = publish_until_full(live, reserve)
        require_readable(live, done)
        assert messages
        assert all("free " in message and " MB" in message for message in messages), messages
        subprocess.run(["mount", "-o", "remount,size=20m", "tmpfs", disk], check=True)
        assert publish_until_full(live, reserve)[1] == []
        require_readable(live, list(range(CYCLES)))
        assert [directory_digest(path_of(live, at(number))) for number in range(CYCLES)] == expected
        with Ledger(live / LEDGER) as ledger:
            assert audit(live, ledger) == []
        assert not list(live.glob("forecasts/.*"))
        subprocess.run(["umount", disk], check=True)
        sys.stdout.write(f"{kilobytes} kB: published {done}, errors 73 with '{messages[-1]}'\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
