"""A day of real radar files as a live feed, with faults: short forms of `make replay`."""

from pathlib import Path

import pytest

from fieldcast.pipeline.live.archive import recovery
from tests.campaign import size
from tests.live.replay.config import ReplayOptions
from tests.live.replay.run import replay

CYCLES = size(20, 96)


@pytest.mark.slow
def test_real_files_with_faults_in_feed_and_machine(archive: Path, tmp_path: Path) -> None:
    result = replay(
        ReplayOptions(archive / "radar" / "bom", "bom", tmp_path / "new", "persistence", 8, cycles=CYCLES, seed=2)
    )
    assert not {name: lines for name, lines in result.faults().items() if lines}
    assert result.due == CYCLES
    struck = result.fault_log.struck
    assert struck["killed at a failpoint"] + struck["disk failed"] >= size(8, 17)
    assert result.fault_log.side_by_side >= size(5, 20)
    assert result.fault_log.tracker_seconds < 10


@pytest.mark.slow
def test_without_recovery_the_replay_fails(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "recover", lambda *_: None)  # processes that are started still do
    result = replay(ReplayOptions(archive / "radar" / "bom", "bom", tmp_path / "new", "persistence", 16, cycles=8))
    assert result.fault_log.surprises
