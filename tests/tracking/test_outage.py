"""Trackers that are silent, slow, broken or closed to us: a process waits ten seconds in all, and loses no record."""

import json
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlflow import MlflowClient

from fieldcast.pipeline.errors import InputError, TrackerError
from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.tracking import outbox, patience
from fieldcast.pipeline.tracking import runs as tracking
from fieldcast.pipeline.tracking.comparison import log_comparison, log_scores
from fieldcast.pipeline.tracking.records import safe_name
from fieldcast.pipeline.tracking.registry import Registry

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

WAITED = 2.0  # seconds, in place of seven


@pytest.fixture
def folder(tracker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project's folder, which is the working directory, with an empty tracker and a file of scores."""
    shutil.copy(tracker, tmp_path / "mlflow.db")
    (tmp_path / "sums.nc").write_bytes(b"sums")
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "report.html").write_text("report")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


@pytest.fixture
def server() -> Iterator[Callable[..., str]]:
    """Return a function that starts a server which answers with a status, after some seconds."""
    servers = []

    def start(status: int, seconds: float = 0.0, body: bytes = b"{}") -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                time.sleep(seconds)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None:
                pass

        made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(made)
        threading.Thread(target=made.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{made.server_port}"

    yield start
    for each in servers:
        each.shutdown()
        each.server_close()


@pytest.fixture
def dripping() -> Iterator[str]:
    """Return the address of a server that sends a byte a second, and never all."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(connection,), daemon=True).start()

    def drip(connection: socket.socket) -> None:
        with connection:
            for byte in b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b" " * 1000:
                if ended.wait(1.0):
                    return
                try:
                    connection.send(bytes([byte]))
                except OSError:
                    return

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    ended.set()
    listener.close()


def work(folder: Path, checkpoint: str = "digest") -> float:
    """Record a training and a comparison; return the seconds that it took."""
    started = time.monotonic()
    run = tracking.open_run("storms", "convlstm", checkpoint, "train")
    run.params({"model.name": "convlstm"})
    for step in range(3):
        run.metrics({"train/loss": 1.0 / (step + 1)}, step)
    run.end()
    (run,) = tracking.runs_of("storms", {"convlstm": checkpoint}).values()
    log_scores(run, "recurrent", {"rmse": {5: 1.0, 10: 2.0}}, folder / "sums.nc")
    images = {"case_1": {"convlstm": np.zeros((8, 8, 3), np.uint8)}}
    log_comparison({"convlstm": run}, folder / "comparison", images, {"convlstm": Costs(macs=7)})
    return time.monotonic() - started


def runs(folder: Path) -> list[Any]:
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("storms")
    return [] if experiment is None else list(client.search_runs([experiment.experiment_id]))


def assert_complete(folder: Path) -> None:
    """Assert that there is one run, with all that `work` records, once."""
    (run,) = runs(folder)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert run.info.status == "FINISHED"
    assert run.data.params == {"model.name": "convlstm"}
    assert run.data.metrics["spent/macs"] == 7
    for key, steps in (("train/loss", [0, 1, 2]), ("lead/rmse", [5, 10])):
        assert sorted(each.step for each in client.get_metric_history(run.info.run_id, key)) == steps, key
    assert len([file for file in client.list_artifacts(run.info.run_id, "images") if file.path.endswith(".png")]) == 1
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"scores", "comparison", "images"}


def test_a_silent_tracker_is_asked_once_and_nothing_is_lost(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(patience, "WAITED_SECONDS", WAITED)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with caplog.at_level(logging.WARNING):
            assert work(folder) < WAITED + 4
        assert caplog.text.count("MLflow does not answer") == 1
        patience.start()  # as in the next stage of a repro
        assert work(folder) < 1
        waiting = outbox.pending(patience.OUTBOX)
        assert waiting > 10
        patience.start()
        assert tracking.deliver() == outbox.Delivery(0, (), waiting)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    delivery = tracking.deliver()
    assert (delivery.sent, delivery.left, delivery.refused) == (waiting, 0, ())
    (run,) = runs(folder)
    assert run.data.metrics["spent/macs"] == 7
    assert [path.name for path in patience.OUTBOX.glob("*.jsonl")] == []
    assert list((patience.OUTBOX / "files").iterdir()) == []


def test_a_tracker_that_drips_or_is_slow_costs_a_process_its_patience_in_all(
    folder: Path, server: Callable[..., str], dripping: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "WAITED_SECONDS", WAITED)
    for address in (dripping, server(200, seconds=1.0)):
        patience.start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
        assert work(folder, address) < WAITED + 5
        assert patience.is_down()


def test_slow_answers_use_up_the_patience_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(patience, "WAITED_SECONDS", 0.5)
    started = time.monotonic()

    def ask_often() -> None:
        for _ in range(20):
            patience.ask(lambda: time.sleep(0.3), 0.05)

    with pytest.raises(TrackerError):
        ask_often()
    assert time.monotonic() - started < 2
    patience.start()
    for _ in range(20):
        patience.ask(lambda: None, 0.05)  # quick ones never do


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b"You are not authenticated", "MLflow refuses access"),
        (403, json.dumps({"error_code": "PERMISSION_DENIED", "message": "no"}).encode(), "MLflow refuses access"),
        (404, b"nginx", "no MLflow server"),
        (500, b"oops", "MLflow does not answer"),
        (200, b"<html>", "MLflow does not answer"),
    ],
)
def test_refusals_are_named(
    folder: Path,
    server: Callable[..., str],
    status: int,
    body: bytes,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server(status, body=body))
    with caplog.at_level(logging.WARNING):
        assert work(folder) < 11
    assert caplog.text.count(expected) == 1
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    tracking.deliver()
    assert_complete(folder)
    assert tracking.deliver().sent == 0


def test_a_file_store_and_a_deleted_experiment_are_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:./mlruns")
    work(folder)
    assert "MLFLOW_TRACKING_URI is 'file:./mlruns'" in caplog.text
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    client.delete_experiment(client.create_experiment("storms"))
    work(folder)
    assert "the experiment 'storms' is deleted in MLflow: restore it" in caplog.text
    with pytest.raises(InputError, match="has no run or alias 'convlstm'"):
        Registry("storms").scored("convlstm")
    client.restore_experiment("1")
    tracking.deliver()
    assert outbox.pending(patience.OUTBOX) == 0
    assert runs(folder)[0].data.metrics["spent/macs"] == 7


def test_a_second_comparison_adds_nothing_and_other_scores_do_not_mix(folder: Path) -> None:
    work(folder)
    assert_complete(folder)
    (run,) = tracking.runs_of("storms", {"convlstm": "digest"}).values()
    log_scores(run, "recurrent", {"rmse": {5: 1.0, 10: 2.0}}, folder / "sums.nc")
    images = {"case_1": {"convlstm": np.zeros((8, 8, 3), np.uint8)}}
    log_comparison({"convlstm": run}, folder / "comparison", images, {"convlstm": Costs(macs=7)})
    assert_complete(folder)
    (folder / "sums.nc").write_bytes(b"other thresholds")
    log_scores(run, "recurrent", {"csi_2": {5: 0.5}}, folder / "sums.nc")
    (newest,) = runs(folder)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert newest.info.run_id == run.run_id
    assert {key for key in newest.data.metrics if key.startswith("lead")} == {"lead/csi_2"}
    assert [each.step for each in client.get_metric_history(newest.info.run_id, "train/loss")] == [0, 1, 2]
    assert newest.data.params == {"model.name": "convlstm"}


def test_names_that_mlflow_does_not_take_are_spelled_safely(folder: Path) -> None:
    names = ["csi_1e+06_j_m", "T(2m)", "rain%", "a//b", "../x", "ß", "x" * 300, "test_lead/csi 1 mm", ""]
    spelled = [safe_name(name) for name in names]
    assert spelled[:3] == ["csi_1e06_j_m", "T_2m_", "rain percent"]
    assert spelled[-2] == names[-2]
    run = tracking.open_run("storms", "convlstm", "digest", "train")
    run.metrics(dict.fromkeys(names, 1.0), 0)
    run.params({f"model.{name}": name for name in names})
    assert set(runs(folder)[0].data.metrics) == set(spelled)


def test_a_torn_line_and_a_repeated_delivery_add_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patience.mark_down()
    work(folder)
    patience.forget_mark()
    (path,) = patience.OUTBOX.glob("*.jsonl")
    assert path.stat().st_mode & 0o777 == 0o600
    assert patience.OUTBOX.stat().st_mode & 0o777 == 0o700
    copy = folder / "copy"
    shutil.copytree(patience.OUTBOX, copy)
    with path.open("a") as file:
        file.write('{"kind": "metr')
    tracking.deliver()
    assert_complete(folder)
    shutil.rmtree(patience.OUTBOX)
    copy.rename(patience.OUTBOX)  # as if the process had been killed before it noted what was sent
    tracking.deliver()
    assert_complete(folder)


def test_what_a_run_has_is_passed_over(folder: Path) -> None:
    """A comparison during an outage, of scores that MLflow has already, adds nothing when it is sent."""
    work(folder)
    (before,) = runs(folder)
    patience.mark_down()
    work(folder)
    patience.forget_mark()
    assert tracking.deliver().left == 0
    (after,) = runs(folder)
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert after.info.run_id == before.info.run_id
    assert [each.step for each in client.get_metric_history(after.info.run_id, "lead/rmse")] == [5, 10]


def test_artefacts_follow_a_project_that_is_moved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(folder)
    other = folder.with_name(f"{folder.name}-moved")
    folder.rename(other)
    monkeypatch.chdir(other)
    client = tracking.open_client(other)
    (run,) = client.search_runs(["1"])
    assert Path(client.download_artifacts(run.info.run_id, "scores/sums.nc")).read_bytes() == b"sums"
    assert run.info.artifact_uri.startswith((other / "mlartifacts").as_uri())


def test_runs_of_killed_processes_end_as_killed(folder: Path) -> None:
    process = os.fork()
    if not process:
        tracking.open_run("storms", "convlstm", "killed", "train")
        os._exit(0)
    os.waitpid(process, 0)
    assert [run.info.status for run in runs(folder)] == ["RUNNING"]
    run = tracking.open_run("storms", "convlstm", "next", "train")
    assert sorted(each.info.status for each in runs(folder)) == ["KILLED", "RUNNING"]
    run.abandon(ValueError("no"))
    assert sorted(each.info.status for each in runs(folder)) == ["FAILED", "KILLED"]
