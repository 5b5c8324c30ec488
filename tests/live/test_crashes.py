"""Processes that are killed, that fail at every step, that publish all at once, and disks that are full.

Afterwards a start finds everything acknowledged, byte for byte as an undisturbed run leaves it, and readers never
notice.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from docs.tools.imports import ROOT
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.live.archive import publish as archive
from fieldcast.pipeline.live.archive.durable import FAILPOINT
from fieldcast.pipeline.live.archive.ledger import LEDGER, OPEN, VISIBLE, Ledger, State
from fieldcast.pipeline.live.archive.publish import path_of, read_catalogue
from fieldcast.pipeline.live.clock import iso, parse
from tests.campaign import cases, size
from tests.live.full_disk import KILOBYTES
from tests.live.publishing import (
    SEED,
    START,
    STEP,
    at,
    claim,
    ended,
    failing,
    fields,
    issue,
    processes,
    publish,
    publish_and_retire,
    publish_patiently,
    start,
    writing,
)

SOURCES = ("archive/publish", "cycle", "archive/recovery")
FAILPOINTS = sorted(
    {
        name
        for module in SOURCES
        for name in re.findall(r'failpoint\("(\w+)"\)', (ROOT / f"pipeline/live/{module}.py").read_text())
    }
)
ERRORS: dict[str, type[Exception]] = {"enospc": OSError, "eio": OSError, "raise": RuntimeError}
CYCLES = 3


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "live"
    for number in range(CYCLES):
        publish(folder, at(number))
    return folder


@pytest.fixture(scope="module")
def undisturbed(published: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the digest of every store that `publish_and_retire` leaves."""
    folder = Path(shutil.copytree(published, tmp_path_factory.mktemp("undisturbed") / "live"))
    publish_and_retire(folder, at(CYCLES))
    return digests(folder)


@pytest.fixture
def folder(published: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a live folder with three published cycles."""
    archive._checked.cache_clear()
    yield Path(shutil.copytree(published, tmp_path / "live"))
    archive._checked.cache_clear()


def digests(folder: Path) -> dict[str, str]:
    return {path.name: directory_digest(path) for path in sorted((folder / "forecasts").iterdir())}


def numbers_read(folder: Path) -> list[int]:
    """Return the numbers of the cycles that a reader gets, with the values that were published."""
    forecasts = archive.open_forecasts(folder).load()
    numbers = [round((archive.from_numpy(it) - START) / STEP) for it in forecasts["init_time"].values]
    for number, values in zip(numbers, forecasts["rain_rate"].values, strict=True):
        np.testing.assert_array_equal(values, fields(at(number))[:, 0])
    return numbers


def require_whole(folder: Path) -> None:
    """Fail unless ledger, catalogue and forecasts agree and nothing is left over."""
    with Ledger(folder / LEDGER) as ledger:
        assert archive.audit(folder, ledger) == []
        assert ledger.cycles(states=OPEN) == []
        shown = {it["path"].removeprefix("forecasts/") for it in read_catalogue(folder)}
        rows = ledger.cycles(states=VISIBLE)
        assert shown == {path_of(folder, row.init_time, row.revision).name for row in rows[-len(shown) :]}
        stores = {path.name for path in (folder / "forecasts").iterdir()}
        assert stores >= shown
        retired = {path_of(folder, row.init_time).name for row in ledger.cycles(states=[State.RETIRED])}
        assert stores - {path_of(folder, row.init_time, row.revision).name for row in rows} <= retired
    left = [path for path in folder.rglob("*") if path.name.endswith((".partial", ".trash", "-journal"))]
    assert left == []


def test_there_are_failpoints() -> None:
    assert {"store_written", "renamed", "before_commit", "claimed", "retired"} <= set(FAILPOINTS)


@pytest.mark.parametrize("name", FAILPOINTS)
@pytest.mark.parametrize("action", cases(["kill", *ERRORS], ["kill", "enospc"]))
def test_the_next_run_repairs_one_cut_at_a_failpoint(
    folder: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch, name: str, action: str
) -> None:
    if action == "kill":
        killed = start(failing, f"{name}:kill", publish_and_retire, folder, at(CYCLES))
        assert ended(killed) == -signal.SIGKILL, f"'{name}' was not reached"
    else:
        monkeypatch.setenv(FAILPOINT, f"{name}:{action}")
        with pytest.raises(ERRORS[action]):
            publish_and_retire(folder, at(CYCLES))
        monkeypatch.delenv(FAILPOINT)
    seen = numbers_read(folder)
    assert seen in ([0, 1, 2], [0, 1, 2, 3], [2, 3])
    publish_and_retire(folder, at(CYCLES))
    assert numbers_read(folder) == [2, 3]
    assert digests(folder) == undisturbed
    require_whole(folder)


@pytest.mark.parametrize("first", ["renamed", "before_catalogue", "before_commit"])
def test_the_next_run_repairs_a_start_that_was_cut_itself(
    folder: Path, undisturbed: dict[str, str], first: str
) -> None:
    for name in (first, "before_catalogue"):
        killed = start(failing, f"{name}:kill", publish_and_retire, folder, at(CYCLES))
        assert ended(killed) == -signal.SIGKILL
        assert numbers_read(folder)[:3] == [0, 1, 2]
    publish_and_retire(folder, at(CYCLES))
    assert digests(folder) == undisturbed
    require_whole(folder)


def take_turns(folder: Path, rounds: int, barrier: Any, results: Any) -> None:
    """Publish the same cycles as the other processes, all at the same moment; report the attempts of each."""
    for number in range(rounds):
        barrier.wait()
        publish_patiently(folder, [at(number)])
        with Ledger(folder / LEDGER, read_only=True) as ledger:
            cycle = ledger.cycle(at(number))
        results.send((number, cycle.attempt if cycle else 0))


def run_together(*jobs: tuple[Any, ...]) -> None:
    started = [start(*job) for job in jobs]
    assert [ended(process, 300) for process in started] == [0] * len(jobs)


@pytest.mark.slow
def test_cycles_published_by_many_processes_at_once(tmp_path: Path) -> None:
    """Processes with cycles of their own, in campaigns eight with 25 each: none lost, none twice."""
    folder = tmp_path / "live"
    folder.mkdir()
    count, each = size(4, 8), size(6, 25)
    run_together(*((publish_patiently, folder, [at(count * i + own) for i in range(each)]) for own in range(count)))
    assert numbers_read(folder) == list(range(count * each))
    with Ledger(folder / LEDGER) as ledger:
        rows = ledger.cycles()
        assert [(row.state, row.attempt, row.revision) for row in rows] == [(State.PUBLISHED, 1, 0)] * (count * each)
        assert sum(event["event"] == "published" for event in ledger.events(10**6)) == count * each
        assert len(ledger.pending()) == count * each
    assert len(list((folder / "forecasts").iterdir())) == count * each
    require_whole(folder)


@pytest.mark.slow
def test_one_cycle_published_by_many_processes_at_once(tmp_path: Path) -> None:
    """Exactly one of several processes publishes it, time after time."""
    folder = tmp_path / "live"
    folder.mkdir()
    count, rounds = size(4, 8), size(4, 10)
    barrier, (here, there) = processes.Barrier(count), processes.Pipe(duplex=False)
    run_together(*((take_turns, folder, rounds, barrier, there) for _ in range(count)))
    attempts = [here.recv() for _ in range(count * rounds)]
    assert set(attempts) == {(number, 1) for number in range(rounds)}
    with Ledger(folder / LEDGER) as ledger:
        assert sum(event["event"] == "published" for event in ledger.events(10**6)) == rounds
        assert sum(event["event"] == "running" for event in ledger.events(10**6)) == rounds
    assert numbers_read(folder) == list(range(rounds))
    require_whole(folder)


def publish_forever(folder: Path, acknowledged: Path) -> None:
    """Publish the next cycles one after the other, as a schedule does, and write down each that is done."""
    with acknowledged.open("ab", buffering=0) as record:
        while True:
            with writing(folder, attempts=10**6) as ledger:
                waiting = ledger.cycles(states=OPEN)
                newest = ledger.cycles(newest=1)
                moment = waiting[0].init_time if waiting else newest[0].init_time + STEP if newest else START
                issue(folder, ledger, claim(ledger, moment))
            record.write(f"{iso(moment)}\n".encode())


def read_forever(folder: Path, stop: Any, results: Connection) -> None:
    """Open the newest forecast again and again; report how often, or what was wrong."""
    reads, newest = 0, ""
    try:
        while not stop.is_set():
            latest = read_catalogue(folder)[-1]["init_time"]
            assert latest >= newest, f"{latest} after {newest}"
            newest = latest
            found = archive.open_forecasts(folder, newest).load()
            assert iso(archive.from_numpy(found["init_time"].values[0])) == newest
            np.testing.assert_array_equal(found["rain_rate"].values[0], fields(parse(newest))[:, 0])
            reads += 1
        results.send((reads, ""))
    except BaseException as error:
        results.send((reads, repr(error)))


def kill(process: BaseProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL


def seconds_to_publish(folder: Path, acknowledged: Path) -> float:
    """Return the seconds until a new process has published something on this machine."""
    seconds = []
    for _ in range(size(1, 3)):
        before, lines = time.perf_counter(), acknowledged.read_text() if acknowledged.exists() else ""
        writer = start(publish_forever, folder, acknowledged)
        while not acknowledged.exists() or acknowledged.read_text() == lines:
            time.sleep(0.005)
        seconds.append(time.perf_counter() - before)
        kill(writer)
    return min(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [SEED])
def test_kills_while_another_process_reads(tmp_path: Path, seed: int) -> None:
    """No partial or lost forecast, none that cannot be read, and the newest never goes back."""
    folder, acknowledged = tmp_path / "live", tmp_path / "acknowledged"
    publish(folder, at(0))
    stop, (here, there) = processes.Event(), processes.Pipe(duplex=False)
    reader = start(read_forever, folder, stop, there)
    rng = random.Random(seed)
    longest = 1.5 * seconds_to_publish(folder, acknowledged)
    for _ in range(size(20, 200)):
        writer = start(publish_forever, folder, acknowledged)
        time.sleep(rng.uniform(0, longest))
        kill(writer)
    stop.set()
    reads, wrong = here.recv()
    assert ended(reader) == 0
    assert wrong == ""
    assert reads > size(0, 5)
    with writing(folder, attempts=10**6) as ledger:
        for cycle in ledger.cycles(states=OPEN):
            issue(folder, ledger, claim(ledger, cycle.init_time))
        shown = [row.init_time for row in ledger.cycles(states=VISIBLE)]
    done = {parse(line) for line in acknowledged.read_text().split()}
    assert len(done) > size(0, 5)
    assert shown == [at(number) for number in range(len(shown))]
    assert done <= set(shown)
    require_whole(folder)
    other = tmp_path / "undisturbed"
    with writing(other) as ledger:
        for moment in shown:
            issue(other, ledger, claim(ledger, moment))
    assert digests(folder) == digests(other)


NAMESPACES = (["unshare", "--mount"], ["unshare", "--map-root-user", "--mount"])


def mounting() -> list[str]:
    """Return the command in front of a program that may mount a small disk of its own; skip where nothing may."""
    for prefix in NAMESPACES:
        try:
            probe = subprocess.run([*prefix, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False)
        except FileNotFoundError:
            continue
        if probe.returncode == 0:
            return prefix
    pytest.skip(
        "a full disk needs a small one: run this test as root, or where unprivileged user namespaces are allowed "
        "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0), with util-linux "
        "installed"
    )


@pytest.mark.slow
def test_full_disks(tmp_path: Path) -> None:
    """`tests.live.full_disk` does it in a mount namespace of its own, which takes the disks with it when it ends."""
    command = [*mounting(), sys.executable, "-W", "error", "-m", "tests.live.full_disk", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("errors 73") == len(KILOBYTES)
