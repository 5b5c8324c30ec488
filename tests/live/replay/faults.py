"""Faults of a feed in a replay: an archive whose files come late, damaged, twice, or never.

The plan is drawn from a seed, so that the frames that each cycle can have follow from it.
"""

from __future__ import annotations

import gzip
import random
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

import h5py
import numpy as np

from fieldcast.pipeline.errors import InputError

SHARES = {  # of the frames that have each fault, one at least
    "never came": 0.03,
    "after the deadline": 0.05,
    "just before the deadline": 0.03,
    "out of order": 0.03,
    "twice": 0.03,
    "contradicted": 0.02,
    "cut, then whole": 0.03,
    "cut for ever": 0.02,
}
OUTAGE = "feed down"  # some frames in a row that never come: once
OTHER_COUNT = 40  # what a contradicting file has in its middle, in the archive's own units


@dataclass(frozen=True)
class Arrival:
    """A file that comes into the feed, or more of it."""

    at: datetime
    source: Path
    name: str  # below the feed's folder
    share: float = 1.0  # of its bytes
    altered: bool = False  # another field at the same time


@dataclass
class Plan:
    """All arrivals; `whole` has for each time of the archive the moment from which its frame can be read."""

    arrivals: list[Arrival] = field(default_factory=list)
    whole: dict[datetime, datetime] = field(default_factory=dict)
    faults: dict[str, list[datetime]] = field(default_factory=dict)  # kind -> times of the frames that have it

    def present(self, times: Sequence[datetime], now: datetime) -> list[bool]:
        """Return which frames of these times can be read by now."""
        return [time in self.whole and self.whole[time] <= now for time in times]


def plan_feed(
    files: Mapping[datetime, Path],
    root: Path,
    step: timedelta,
    deadline: timedelta,
    clean: int,
    outage: int,
    seed: int | None,
) -> Plan:
    """Return the arrivals of the files (by time, below `root`) in the feed; without a seed there are no faults.

    The first `clean` frames come as they should; once, `outage` frames in a row never come. `deadline` is that of the
    cycle of a frame's own time.
    """
    rng = random.Random(seed)
    times = sorted(files)
    plan = Plan(faults={} if seed is None else _drawn(rng, times[clean:], outage))
    kinds = {time: kind for kind, faulty in plan.faults.items() for time in faulty}
    for time in times:
        path = files[time]
        name = path.relative_to(root).as_posix()
        at = time + step * rng.uniform(0.1, 0.3)
        arrivals = _arrivals(rng, kinds.get(time, ""), Arrival(at, path, name), time, step, deadline)
        plan.arrivals += arrivals
        if (whole := next((it.at for it in arrivals if it.share == 1.0), None)) is not None:
            plan.whole[time] = whole
    plan.arrivals.sort(key=lambda it: it.at)
    return plan


class Feed:
    """A folder into which a plan's files come."""

    def __init__(self, folder: Path, arrivals: Sequence[Arrival]) -> None:
        self.folder, self._coming = folder, sorted(arrivals, key=lambda it: it.at, reverse=True)
        folder.mkdir(parents=True, exist_ok=True)

    def deliver(self, now: datetime) -> int:
        """Put in the folder the files that have arrived by now; return their number."""
        count = 0
        while self._coming and self._coming[-1].at <= now:
            self._put(self._coming.pop())
            count += 1
        return count

    def _put(self, arrival: Arrival) -> None:
        """Write a file: in one step, as a careful feed does, or grown in its place, if it was cut."""
        target = self.folder / arrival.name
        target.parent.mkdir(parents=True, exist_ok=True)
        content = arrival.source.read_bytes()
        if arrival.share < 1.0:
            target.write_bytes(content[: int(len(content) * arrival.share)])
        elif target.exists():
            with target.open("r+b") as file:
                file.seek(0, 2)
                file.write(content[file.tell() :])
        else:
            with tempfile.TemporaryDirectory(dir=self.folder.parent) as aside:
                partial = Path(aside, target.name)
                shutil.copyfile(arrival.source, partial)
                if arrival.altered:
                    alter(partial)
                partial.replace(target)


def alter(path: Path) -> None:
    """Change the field of a radar file and nothing else: a part in its middle gets one value."""
    if path.name.endswith((".pgm", ".pgm.gz")):
        content = path.read_bytes()
        packed = path.suffix == ".gz"
        image = bytearray(gzip.decompress(content) if packed else content)
        middle = slice(len(image) // 2, len(image) * 3 // 4)  # behind the header, which is shorter than the field
        image[middle] = bytes([OTHER_COUNT]) * len(image[middle])
        path.write_bytes(gzip.compress(bytes(image), mtime=0) if packed else bytes(image))
        return
    with h5py.File(path, "r+") as file:
        fields: list[h5py.Dataset] = []
        file.visititems(lambda _, it: fields.append(it) if isinstance(it, h5py.Dataset) and it.ndim == 2 else None)
        if not fields:
            raise InputError(f"{path}: no field (y, x), expected one: replace the file")
        largest = max(fields, key=lambda it: it.size)
        rows, columns = (slice(size // 4, size * 3 // 4) for size in largest.shape)
        largest[rows, columns] = np.full(largest[rows, columns].shape, OTHER_COUNT, largest.dtype)


def _drawn(rng: random.Random, times: Sequence[datetime], outage: int) -> dict[str, list[datetime]]:
    """Return the frames that have each fault; no frame has two."""
    first = rng.randrange(max(1, len(times) - outage))
    faults = {OUTAGE: list(times[first : first + outage])}
    left = [time for time in times if time not in faults[OUTAGE]]
    rng.shuffle(left)
    for kind, share in SHARES.items():
        count = max(1, round(share * len(times)))
        faults[kind], left = sorted(left[:count]), left[count:]
    return faults


def _arrivals(
    rng: random.Random, kind: str, usual: Arrival, time: datetime, step: timedelta, deadline: timedelta
) -> list[Arrival]:
    """Return the arrivals of one frame; `usual` is the one without a fault."""
    at, path, name = usual.at, usual.source, usual.name
    late = {
        "after the deadline": (deadline + 0.2 * step, deadline + 2 * step),
        "just before the deadline": (0.9 * deadline, deadline),
        "out of order": (1.3 * step, max(1.4 * step, deadline)),
    }
    if kind in (OUTAGE, "never came"):
        return []
    if kind in late:
        return [Arrival(time + rng.uniform(0, 1) * (late[kind][1] - late[kind][0]) + late[kind][0], path, name)]
    if kind == "twice":
        return [usual, Arrival(at + step * rng.uniform(0.2, 1.5), path, f"again/{path.name}")]
    if kind == "contradicted":
        return [usual, Arrival(at + step * rng.uniform(0.3, 1.5), path, f"other/{path.name}", altered=True)]
    if kind.startswith("cut"):
        cut = Arrival(at, path, name, share=rng.uniform(0.0, 0.95))
        whole = Arrival(at + (time + 0.95 * deadline - at) * rng.uniform(0.4, 1), path, name)
        return [cut, whole] if kind == "cut, then whole" else [cut]
    return [usual]
