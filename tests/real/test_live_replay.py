"""A day of real radar files as a live feed, with faults: short forms of `make replay`."""

from pathlib import Path

import pytest

from fieldcast.pipeline.live.archive import recovery
from fieldcast.pipeline.live.rehearsal import Rehearsal
from fieldcast.pipeline.live.replay import replay


@pytest.mark.slow
def test_real_files_with_faults_in_feed_and_machine(archive: Path, tmp_path: Path) -> None:
    findings = replay(
        Rehearsal(archive / "radar" / "bom", "bom", tmp_path / "new", "persistence", 8, cycles=20, seed=2)
    )
    assert not {name: lines for name, lines in findings.faults().items() if lines}
    assert findings.due == 20
    struck = findings.machine.struck
    assert struck["killed at a failpoint"] + struck["disk failed"] >= 8
    assert findings.machine.side_by_side >= 5
    assert findings.machine.tracker_seconds < 10


@pytest.mark.slow
def test_without_recovery_the_rehearsal_fails(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "recover", lambda *_: None)  # processes that are started still do
    findings = replay(Rehearsal(archive / "radar" / "bom", "bom", tmp_path / "new", "persistence", 16, cycles=14))
    assert findings.machine.surprises
