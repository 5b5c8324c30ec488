"""The command line of scheduled forecasts, as schedulers and people call it; on the machine's own clock."""

import json
import logging
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from fieldcast.pipeline.cli import main as cli
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger
from fieldcast.pipeline.live.archive.publish import open_forecasts
from fieldcast.pipeline.tracking import runs as tracking
from tests.conftest import merged
from tests.live.contexts import PARAMS, write_reference

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def project(tmp_path: Path, tracker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project with a checkpoint, parameters and an empty tracker, as working directory."""
    write_reference(tmp_path / "checkpoints" / "persistence")
    live = {"model": "checkpoints/persistence"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(merged(PARAMS, {"live": live})))
    (tmp_path / "mlflow.db").write_bytes(tracker.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def fieldcast(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Return a function that runs the command and gives exit code, standard output and standard error."""

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.getLogger("fieldcast"), "level", logging.NOTSET)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fieldcast", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def past(hours: float) -> str:
    """Return an init time some hours ago."""
    now = datetime.now(UTC) - timedelta(hours=hours)
    return f"{now.replace(minute=0):%Y-%m-%dT%H:%M}"


def test_from_the_first_cycle_to_the_audit(fieldcast: Command, project: Path) -> None:
    code, out, _ = fieldcast("cycle", "--dry-run")
    assert code == 0
    assert "would be forecast by persistence" in out
    assert not (project / "data").exists()
    assert fieldcast("cycle", "--at", past(2))[0] == 0
    assert fieldcast("cycle", "--at", past(2), "--detailed-exit-code")[0] == 10
    code, out, _ = fieldcast("cycle", "--json")
    content = json.loads(out)["cycles"][0]
    assert (code, content["outcome"], content["exit_code"]) == (0, "done", 0)
    assert Path(content["path"]).is_dir()
    code, out, _ = fieldcast("status", "--json")
    assert code == 0
    assert json.loads(out)
    code, out, _ = fieldcast("status")
    assert code == 0
    assert "persistence" in out
    assert "refused:" not in out
    with Ledger(project / "data" / "live" / LEDGER) as ledger, ledger.writing():
        ledger.note("refused", datetime.now(UTC), "feed/[a].nc: rain_rate is 9600")
    assert "refused: feed/[a].nc: rain_rate is 9600" in fieldcast("status")[1]
    assert fieldcast("audit")[0] == 0
    chunk = next(path for path in open_folder(project).rglob("c/0/0/0/0"))
    content_ = bytearray(chunk.read_bytes())
    content_[len(content_) // 2] ^= 1
    chunk.write_bytes(content_)
    code, _, err = fieldcast("audit")
    assert code == 74
    assert str(chunk.relative_to(project)) in err


def open_folder(project: Path) -> Path:
    return project / "data" / "live" / "forecasts"


def test_backfill_prints_every_cycle(fieldcast: Command, project: Path) -> None:
    start = datetime.fromisoformat(past(3))
    code, out, _ = fieldcast("backfill", "--from", past(3), "--to", f"{start + timedelta(minutes=10):%Y-%m-%dT%H:%M}")
    assert code == 0
    assert out.count(" done by persistence") == 3
    assert open_forecasts(project / "data" / "live").sizes["init_time"] == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["cycle", "--at", "noon"], "'noon' is no time"),
        (["cycle", "--at", "2024-06-01T06:02"], "is no init time"),
        (["cycle", "--supersede"], "needs --at"),
        (["cycle", "--model", "checkpoints/none"], "live.model is 'checkpoints/none'"),
        (["backfill", "--from", "2024-06-01T06:00", "--to", "2024-06-01T05:00"], "swap them"),
        (["status", "--cycles", "0"], "greater than or equal to 1"),
        (["audit"], "holds no ledger"),
        (["sync"], "holds no ledger"),
        (["serve", "--model", "checkpoints/none"], "live.model is 'checkpoints/none'"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(
    fieldcast: Command, project: Path, arguments: list[str], words: str
) -> None:
    code, out, err = fieldcast(*arguments)
    assert code == 2
    assert words in " ".join(err.replace("│", " ").split())
    assert out == ""
    assert not list((project / "data").rglob("*.zarr"))


def test_a_wrong_cron_expression_stops_the_start(fieldcast: Command, project: Path) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["live"]["schedule"] = {"cron": "often"}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    code, _, err = fieldcast("serve")
    assert code == 2
    assert "live.schedule.cron is 'often'" in err


def test_another_process_at_work_is_told(fieldcast: Command, project: Path) -> None:
    from fieldcast.pipeline.live.archive.durable import locked
    from fieldcast.pipeline.live.clock import SystemClock

    content = yaml.safe_load((project / "params.yaml").read_text())
    content["live"]["lock_wait_seconds"] = 0.1
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    (project / "data" / "live").mkdir(parents=True)
    with locked(project / "data" / "live" / "lock", 0, SystemClock()):
        code, _, err = fieldcast("cycle")
    assert code == 75
    assert "held by process" in err


def test_the_champion_of_the_registry_forecasts(fieldcast: Command, project: Path) -> None:
    folder = project / "checkpoints" / "persistence"
    run = tracking.open_run("small", "persistence", store.directory_digest(folder), "train")
    run.register(folder, "persistence")
    run.end()
    code, _, err = fieldcast("cycle", "--at", past(2), "--model", "champion")
    assert code == 2
    assert "champion" in err
    tracking.open_client(project).set_registered_model_alias("small", "champion", "1")
    code, _, err = fieldcast("cycle", "--at", past(2), "--model", "champion")
    assert code == 0, err
    with Ledger(project / "data" / "live" / LEDGER, read_only=True) as ledger:
        assert ledger.cycles()[-1].model_version == "small/1"
    (project / "mlflow.db").write_bytes(b"no database")  # the tracker has gone: the champion stays
    code, _, err = fieldcast("cycle", "--at", past(3), "--model", "champion")
    assert code == 0, err
    assert "champion stays version" in err
    with Ledger(project / "data" / "live" / LEDGER, read_only=True) as ledger:
        assert ledger.cycles()[0].model_version == "small/1"
        assert len(ledger.pending()) >= 1


def test_a_registry_that_never_answered_is_to_be_tried_again(fieldcast: Command, project: Path) -> None:
    (project / "mlflow.db").write_bytes(b"no database")
    code, _, err = fieldcast("cycle", "--model", "champion")
    assert code == 75
    assert "MLflow does not answer" in err


def test_what_a_dead_tracker_missed_is_sent_later(fieldcast: Command, project: Path) -> None:
    database = (project / "mlflow.db").read_bytes()
    (project / "mlflow.db").write_bytes(b"no database")
    assert fieldcast("cycle", "--at", past(2))[0] == 0
    assert fieldcast("sync")[0] == 75
    (project / "mlflow.db").write_bytes(database)
    code, out, _ = fieldcast("sync")
    assert code == 0
    assert "0 left" in out
    client = tracking.open_client(project)
    experiment = client.get_experiment_by_name("small-forecasts")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) >= 1
    assert runs[-1].data.metrics["cycle/degraded"] == 0
