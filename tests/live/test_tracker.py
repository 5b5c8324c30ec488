"""MLflow on sqlite and as a real server; servers that fail are stubs on the loopback interface."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live.mlflow_sync import (
    STALE_SECONDS,
    Record,
    Registered,
    TrackerDownError,
    _batches,
    fetch_registered,
    send_records,
)
from fieldcast.pipeline.tracking import runs as tracking

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

NOON = datetime(2020, 10, 31, 12, tzinfo=UTC)
ALIAS = "champion"


@pytest.fixture
def root(tracker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a project's folder with an empty MLflow database; the working directory is another."""
    folder = tmp_path / "project"
    folder.mkdir()
    shutil.copy(tracker, folder / "mlflow.db")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def register(root: Path, seed: str = "first") -> Path:
    """Register a checkpoint as the train stage does, give it the alias and return its folder."""
    checkpoint = root / seed / "convlstm"
    (checkpoint / "more").mkdir(parents=True)
    (checkpoint / "config.json").write_text(json.dumps({"seed": seed}))
    (checkpoint / "model.safetensors").write_bytes(seed.encode() * 50_000)
    (checkpoint / "more" / "card.md").write_text(seed)
    run = tracking.open_run("storms", "convlstm", store.directory_digest(checkpoint), "train", root)
    run.register(checkpoint, "persistence")
    run.end()
    client = tracking.open_client(root)
    newest = max(int(version.version) for version in client.search_model_versions("name='storms'"))
    client.set_registered_model_alias("storms", ALIAS, str(newest))
    return checkpoint


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def record(seq: int, **changes: Any) -> Record:
    at = NOON + timedelta(minutes=5 * seq)
    facts: dict[str, Any] = {
        "seq": seq,
        "day": f"{at:%Y-%m-%d}",
        "model": "convlstm",
        "model_version": "storms/3",
        "kind": "cycle",
        "at": at,
        "values": {"cycle/seconds_forecast": 0.1 * seq, "cycle/degraded": 0.0},
        "step": 60 * at.hour + at.minute,
        "tags": {"newest": str(seq)},
    }
    return Record(**(facts | changes))


def runs(root: Path) -> dict[str, Any]:
    """Return the runs of the forecasts' experiment by name."""
    client = tracking.open_client(root)
    experiment = client.get_experiment_by_name("storms-forecasts")
    assert experiment is not None
    return {str(run.info.run_name): run for run in client.search_runs([experiment.experiment_id])}


def history(root: Path, run_id: str, key: str) -> list[tuple[int, int, float]]:
    return [
        (entry.step, entry.timestamp, entry.value)
        for entry in tracking.open_client(root).get_metric_history(run_id, key)
    ]


# --- the registered model


def test_the_alias_names_a_checkpoint_and_it_is_fetched_once(root: Path, tmp_path: Path) -> None:
    checkpoint, into = register(root), tmp_path / "models"
    found = fetch_registered("storms", ALIAS, into, root)
    digest = store.directory_digest(checkpoint)
    assert (found.version, found.digest, found.folder) == ("1", digest, into / digest)
    assert tracking.open_client(root).get_run(found.run_id).data.tags["model"] == "convlstm"
    assert content(found.folder) == content(checkpoint)
    assert [path.name for path in into.iterdir()] == [digest]
    shutil.rmtree(root / "mlartifacts")
    assert fetch_registered("storms", ALIAS, into, root) == found


def test_the_alias_may_move(root: Path, tmp_path: Path) -> None:
    register(root, "first")
    first = fetch_registered("storms", ALIAS, tmp_path / "models", root)
    checkpoint = register(root, "second")
    second = fetch_registered("storms", ALIAS, tmp_path / "models", root)
    assert second.version == "2"
    assert content(second.folder) == content(checkpoint)
    assert first.folder.is_dir()


def test_a_damaged_copy_is_fetched_anew(root: Path, tmp_path: Path) -> None:
    checkpoint = register(root)
    found = fetch_registered("storms", ALIAS, tmp_path / "models", root)
    (found.folder / "config.json").write_text("{")
    assert fetch_registered("storms", ALIAS, tmp_path / "models", root) == found
    assert content(found.folder) == content(checkpoint)


def test_a_version_whose_run_is_not_known_is_fetched_too(root: Path, tmp_path: Path) -> None:
    checkpoint, client = register(root), tracking.open_client(root)
    run_id = client.get_model_version_by_alias("storms", ALIAS).run_id
    assert run_id is not None
    client.set_tag(run_id, tracking.CHECKPOINT_TAG, "../../elsewhere")
    for _ in range(2):
        found = fetch_registered("storms", ALIAS, tmp_path / "models", root)
        assert found.folder == tmp_path / "models" / store.directory_digest(checkpoint)


def test_what_a_killed_download_left_is_swept(root: Path, tmp_path: Path) -> None:
    register(root)
    old, young = tmp_path / "models" / ".old.partial", tmp_path / "models" / ".young.partial"
    for folder in (old, young):
        folder.mkdir(parents=True)
    before = time.time() - STALE_SECONDS - 60
    os.utime(old, (before, before))
    fetch_registered("storms", ALIAS, tmp_path / "models", root)
    assert not old.exists()
    assert young.exists()


def test_without_the_alias_the_message_says_how_to_set_it(root: Path, tmp_path: Path) -> None:
    expected = r"no version of the model 'storms' has the alias 'best' .*Models > storms > .*Aliases.*data/checkpoints"
    with pytest.raises(InputError, match=expected):
        fetch_registered("storms", "best", tmp_path / "models", root)
    register(root)
    with pytest.raises(InputError, match=expected):
        fetch_registered("storms", "best", tmp_path / "models", root)
    assert not (tmp_path / "models").exists()


def test_a_checkpoint_that_is_not_the_registered_one_is_refused(root: Path, tmp_path: Path) -> None:
    register(root)
    (weights,) = (root / "mlartifacts").rglob("model.safetensors")
    weights.write_bytes(b"other")
    with pytest.raises(InputError, match=r"version 1 of the model 'storms': its checkpoint has digest .*, expected"):
        fetch_registered("storms", ALIAS, tmp_path / "models", root)
    assert not list((tmp_path / "models").iterdir())


def test_a_model_of_another_kind_is_refused(root: Path, tmp_path: Path) -> None:
    register(root)
    shutil.rmtree(next((root / "mlartifacts").rglob("artifacts/convlstm")))
    with pytest.raises(InputError, match="version 1 of the model 'storms' has 0 folders in file://"):
        fetch_registered("storms", ALIAS, tmp_path / "models", root)


def test_a_full_disk_is_not_the_trackers_fault(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(root)

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="No space left"):
        fetch_registered("storms", ALIAS, tmp_path / "models", root)


# --- records


def test_records_become_one_run_a_day_and_version(root: Path) -> None:
    records = [record(0), record(1), record(200), record(2, model_version="storms/4"), record(3)]
    assert sorted(send_records("storms", records, root)) == [0, 1, 2, 3, 200]
    client = tracking.open_client(root)
    experiment = client.get_experiment_by_name("storms-forecasts")
    assert experiment is not None
    assert experiment.artifact_location == (root / "mlartifacts" / "storms-forecasts").as_uri()
    found = client.search_runs([experiment.experiment_id])
    assert sorted((run.data.tags["fieldcast.day"], run.data.tags["fieldcast.model_version"]) for run in found) == [
        ("2020-10-31", "storms/3"),
        ("2020-10-31", "storms/4"),
        ("2020-11-01", "storms/3"),
    ]
    (run,) = [run for run in found if run.data.tags["newest"] == "3"]
    assert run.info.run_name == "2020-10-31 convlstm"
    assert run.info.status == "FINISHED"
    midnight = datetime(2020, 10, 31, tzinfo=UTC).timestamp() * 1000
    assert (run.info.start_time, run.info.end_time) == (midnight, midnight + 86_400_000)
    assert run.data.tags["model"] == "convlstm"
    assert run.data.tags["mlflow.runColor"].startswith("#")
    assert history(root, run.info.run_id, "cycle/seconds_forecast") == [
        (720 + 5 * seq, int(NOON.timestamp() + 300 * seq) * 1000, 0.1 * seq) for seq in (0, 1, 3)
    ]


def test_a_record_sent_twice_adds_nothing(root: Path) -> None:
    records = [record(0), record(1)]
    assert send_records("storms", records[:1], root) == [0]
    assert send_records("storms", records, root) == [0, 1]
    assert send_records("storms", records, root) == [0, 1]
    (run,) = runs(root).values()
    assert [step for step, _, _ in history(root, run.info.run_id, "cycle/seconds_forecast")] == [720, 725]


def test_the_scores_of_a_cycle_join_its_run(root: Path) -> None:
    assert send_records("storms", [record(0)], root) == [0]
    assert send_records("storms", [record(7, kind="scores", at=NOON, step=720, values={"scores/rmse": 0.5})], root) == [
        7
    ]
    (run,) = runs(root).values()
    assert run.data.metrics == {"cycle/seconds_forecast": 0.0, "cycle/degraded": 0.0, "scores/rmse": 0.5}


def test_values_that_are_not_finite_are_left_out(root: Path) -> None:
    assert send_records("storms", [record(0, values={"a": float("nan"), "b": float("inf")}, tags={})], root) == [0]
    (run,) = runs(root).values()
    assert run.data.metrics == {}


def test_a_refused_record_holds_up_no_other(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [record(0), record(1, tags={"x" * 300: "too long"}), record(2)]
    with caplog.at_level(logging.WARNING):
        assert send_records("storms", records, root) == [0, 2]
    assert "MLflow refuses record 1" in caplog.text


def test_batches_keep_the_limits_and_the_order() -> None:
    values = {f"m{number}": 1.0 for number in range(400)}
    records = [record(seq, values=values) for seq in range(5)]
    assert [[it.seq for it in batch] for batch in _batches(records)] == [[0, 1], [2, 3], [4]]
    tags = {f"t{number}": "x" for number in range(60)}
    assert [len(batch) for batch in _batches([record(seq, tags=tags) for seq in range(3)])] == [1, 1, 1]


def test_nothing_to_send_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldcast.pipeline.live.mlflow_sync.open_client", None)
    assert send_records("storms", []) == []


def test_a_run_that_was_left_open_is_closed(root: Path) -> None:
    send_records("storms", [record(0)], root)
    (run,) = runs(root).values()
    tracking.open_client(root).update_run(run.info.run_id, status="RUNNING")
    send_records("storms", [record(1)], root)
    (run,) = runs(root).values()
    assert run.info.status == "FINISHED"


# --- trackers that fail


@pytest.fixture
def silent() -> Iterator[str]:
    """Return the address of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


Answer = Callable[[str, int], bytes | int]


class Torn(bytes):
    """The beginning of a reply whose connection is cut."""


@pytest.fixture
def stub() -> Iterator[Callable[[Answer], str]]:
    """Return a function that starts a server; it answers with JSON or a status by path and number of the request."""
    servers = []

    def start(answer: Answer) -> str:
        counts: dict[str, int] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                path = self.path.partition("?")[0].removeprefix("/api/2.0/")
                counts[path] = counts.get(path, 0) + 1
                reply = answer(path, counts[path])
                body = reply if isinstance(reply, bytes) else b""
                self.send_response(reply if isinstance(reply, int) else 200)
                self.send_header("Content-Length", str(len(body) + 100 * isinstance(body, Torn)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def dying(last: Callable[[], bytes | int]) -> Answer:
    """Return the answers of a tracker that takes one batch of records; `last` is what happens to the second."""
    experiment = {"experiment": {"experiment_id": "1", "name": "storms-forecasts", "lifecycle_stage": "active"}}
    run = {"info": {"run_id": "r", "run_uuid": "r", "experiment_id": "1", "status": "FINISHED"}, "data": {}}

    def answer(path: str, count: int) -> bytes | int:
        if path == "mlflow/experiments/get-by-name":
            return json.dumps(experiment).encode()
        if path == "mlflow/runs/search":
            return json.dumps({"runs": [run]}).encode()
        if path == "mlflow/runs/log-batch" and count == 1:
            return b"{}"
        return last()

    return answer


def wait_long() -> bytes:
    time.sleep(4)
    return b"{}"


def assert_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, seconds: float) -> None:
    """Assert that both calls give up in time and leave the settings of training alone."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    started = time.monotonic()
    with pytest.raises(TrackerDownError, match="MLflow does not answer"):
        fetch_registered("storms", ALIAS, tmp_path / "models", tmp_path, seconds)
    assert send_records("storms", [record(0)], tmp_path, seconds) == []
    assert time.monotonic() - started < 2 * seconds + 1
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"


def test_a_tracker_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_down(tmp_path, monkeypatch, "http://127.0.0.1:9", 5.0)  # the discard port: nothing listens


def test_a_tracker_that_keeps_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: str) -> None:
    assert_down(tmp_path, monkeypatch, silent, 0.5)


@pytest.mark.parametrize("status", [404, 500, 503])
def test_a_tracker_that_fails(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: Callable[[Answer], str]
) -> None:
    assert_down(tmp_path, monkeypatch, stub(lambda path, count: status), 5.0)


@pytest.mark.parametrize(("last", "seconds"), [(lambda: 500, 5.0), (wait_long, 1.0)])
def test_a_tracker_that_dies_in_the_middle_has_what_arrived(
    last: Callable[[], bytes | int],
    seconds: float,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stub: Callable[[Answer], str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", stub(dying(last)))
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        assert send_records("storms", [record(0), record(1), record(200)], tmp_path, seconds) == [0, 1]
    assert time.monotonic() - started < seconds + 1
    assert "1 of 3 records wait" in caplog.text


def test_a_download_that_breaks_off_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stub: Callable[[Answer], str]
) -> None:
    version = {"name": "storms", "version": "1", "run_id": "", "source": "x", "status": "READY"}
    replies = {
        "mlflow/registered-models/get": {"registered_model": {"name": "storms"}},
        "mlflow/registered-models/alias": {"model_version": version},
        "mlflow/model-versions/get-download-uri": {"artifact_uri": "mlflow-artifacts:/1/models/m-1/artifacts"},
        "mlflow-artifacts/artifacts": {"files": [{"path": "convlstm", "is_dir": True}]},
    }
    files = {
        "files": [{"path": name, "is_dir": False, "file_size": 5} for name in ("config.json", "model.safetensors")]
    }

    def answer(path: str, count: int) -> bytes | int:
        if path.endswith("config.json"):
            return b"whole"
        if path.endswith("model.safetensors"):
            return Torn(b"half")
        reply = files if path == "mlflow-artifacts/artifacts" and count == 2 else replies.get(path)
        return 404 if reply is None else json.dumps(reply).encode()

    monkeypatch.setenv("MLFLOW_TRACKING_URI", stub(answer))
    with pytest.raises(TrackerDownError, match="100 more expected"):
        fetch_registered("storms", ALIAS, tmp_path / "models", tmp_path)
    assert not list((tmp_path / "models").iterdir())


def test_a_password_is_not_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:secret@127.0.0.1:9")
    with pytest.raises(TrackerDownError) as caught:
        fetch_registered("storms", ALIAS, tmp_path / "models", tmp_path)
    assert "secret" not in str(caught.value)


HANGING = """
import sys, time
from pathlib import Path
from fieldcast.pipeline.live.mlflow_sync import TrackerDownError, fetch_registered
try:
    fetch_registered("storms", "champion", Path("models"), seconds=0.5)
except TrackerDownError as error:
    print(error, time.time())
"""


@pytest.mark.slow
def test_a_request_that_hangs_holds_up_no_exit(tmp_path: Path, silent: str) -> None:
    environment = os.environ | {"MLFLOW_TRACKING_URI": silent, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    ended = time.time()
    message, _, at = done.stdout.strip().rpartition(" ")
    assert message == "MLflow does not answer within 0.5 s"
    assert ended - float(at) < 2


# --- a real server


@pytest.fixture(scope="module")
def server(tracker: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of an `mlflow server` that keeps artefacts itself."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copy(tracker, folder / "mlflow.db")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--artifacts-destination", str(folder)]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(process.pid, 15)
            process.wait(20)


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert process.poll() is None
        try:
            MlflowClient(f"http://127.0.0.1:{port}").search_experiments()
        except Exception:
            time.sleep(0.1)
        else:
            return
    pytest.fail("mlflow server did not start")


@pytest.mark.slow
def test_a_real_server_gives_the_checkpoint(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    with pytest.raises(InputError, match="no version of the model 'storms' has the alias"):
        fetch_registered("storms", ALIAS, tmp_path / "models", tmp_path)
    checkpoint = register(tmp_path)
    client = tracking.open_client(tmp_path)
    assert client.get_model_version_download_uri("storms", "1").startswith("mlflow-artifacts:/")
    found = fetch_registered("storms", ALIAS, tmp_path / "models", tmp_path)
    assert found == Registered(
        "1", found.run_id, tmp_path / "models" / found.digest, store.directory_digest(checkpoint)
    )
    assert content(found.folder) == content(checkpoint)
    with pytest.raises(InputError, match="has the alias"):
        fetch_registered("storms", "best", tmp_path / "models", tmp_path)


@pytest.mark.slow
def test_a_real_server_takes_a_record_once(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    records = [record(0), record(1, tags={"x" * 300: "too long"}), record(2), record(200)]
    for _ in range(2):
        assert send_records("storms", records, tmp_path) == [0, 2, 200]
    assert capsys.readouterr().out == ""
    assert sorted(runs(tmp_path)) == ["2020-10-31 convlstm", "2020-11-01 convlstm"]
    run_id = runs(tmp_path)["2020-10-31 convlstm"].info.run_id
    assert history(tmp_path, run_id, "cycle/seconds_forecast") == [
        (720, int(NOON.timestamp()) * 1000, 0.0),
        (730, int(NOON.timestamp() + 600) * 1000, 0.2),
    ]
