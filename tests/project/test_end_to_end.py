"""The whole pipeline under DVC, once: killed and run again; then skipping, reruns, a failure, a team's remote."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from playwright.sync_api import Browser, expect

from fieldcast.pipeline import forecast, train, verify
from tests.conftest import ROOT, merged

pytestmark = pytest.mark.slow

ENVIRONMENT = {
    **{key: value for key, value in os.environ.items() if not key.startswith(("MLFLOW", "DVC", "PYTHONPATH", "GIT_"))},
    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}
METRICS, ALL_SCORES = "data/comparison/metrics.json", "data/comparison/scores.json"
REFERENCE, NETWORK = "persistence", "convlstm_quantiles"
MODELS = (REFERENCE, NETWORK)  # one of each way through the stages: each is three more processes
EPOCHS = 3


@dataclass(frozen=True)
class Finished:
    """A project after `dvc repro`, which was killed in a training before it finished."""

    folder: Path
    output: str  # of the `dvc repro` that finished
    killed_run: str  # the MLflow run of the killed training


def run(folder: Path, *command: str) -> str:
    """Return what a command prints; its failure fails the test with all that it printed."""
    process = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout + process.stderr


def make_project(folder: Path, params: dict[str, Any], tracker: Path) -> None:
    """Make a repository with this project's code and small parameters."""
    folder.mkdir()
    for name in ("fieldcast", "pipeline", "models", "examples", "data/raw"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(tracker, folder / "mlflow.db")
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(folder, "git", "init", "-q")
    commit(folder)


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "state")


def kill_when(folder: Path, ready: Callable[[], bool]) -> None:
    """Start `dvc repro` and end it and all its children by SIGKILL as soon as `ready` is true."""
    process = subprocess.Popen(
        ["dvc", "repro"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not ready():
        assert process.poll() is None, "the pipeline ended before it could be killed"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def params(small: dict[str, Any]) -> dict[str, Any]:
    few = {**small, "models": {name: small["models"][name] for name in MODELS}}
    return merged(few, {"train": {"epochs": EPOCHS}, "compare": {"resamples": 100}})


@pytest.fixture(scope="module")
def finished(params: dict[str, Any], tracker: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("first") / "project"
    make_project(folder, params, tracker)
    kill_when(folder, (folder / "data/resume" / NETWORK / "last.ckpt").exists)
    assert not (folder / "data/checkpoints" / NETWORK).exists()
    killed_run = (folder / "data/resume" / NETWORK / "run_id").read_text()
    output = run(folder, "dvc", "repro")
    commit(folder)
    return Finished(folder, output, killed_run)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    """Return a copy of the finished project, to change."""
    return Path(shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True))


@pytest.fixture
def client(finished: Finished) -> MlflowClient:
    return MlflowClient(f"sqlite:///{finished.folder / 'mlflow.db'}")


def stages_run(output: str) -> set[str]:
    """Return the stages that a `dvc repro` has run, but for `check`, which runs after any change of `params.yaml`."""
    return set(re.findall(r"Running stage '([^']+)'", output)) - {"check"}


def stale(folder: Path) -> set[str]:
    """Return the stages that `dvc status` names."""
    return set(json.loads(run(folder, "dvc", "status", "--json"))) - {"check"}


@contextmanager
def changed(path: Path, text: str) -> Iterator[None]:
    """Let a file have other content for a while."""
    before = path.read_text()
    path.write_text(text)
    yield
    path.write_text(before)


def test_all_models_are_compared(finished: Finished) -> None:
    metrics = json.loads((finished.folder / ALL_SCORES).read_text())
    assert sorted(metrics) == sorted(MODELS)
    for model, scores in metrics.items():
        assert model in finished.output
        assert set(scores["rmse"]) == {"5", "10", "15", "20"}
        assert {"csi_0.5_mm_h", "csi_2_mm_h", "fss_0.5_mm_h_10_km", "far_2_mm_h", "mean_error"} <= set(scores)
    for name in ("report.html", "figures/skill.png", "figures/case.png", "figures/case.gif"):
        assert (finished.folder / "data/comparison" / name).stat().st_size > 5_000
    assert json.loads(run(finished.folder, "dvc", "metrics", "show", "--json"))
    assert "skill.png" in run(finished.folder, "dvc", "plots", "show", "--json")


def test_runs_hold_scores_and_images(finished: Finished, client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    metrics = json.loads((finished.folder / ALL_SCORES).read_text())
    assert len(runs) == len(client.search_model_versions("name='small'")) == len(metrics)
    champion = client.get_model_version_by_alias("small", "champion")
    assert champion.description.startswith("champion: ")
    for each in runs:
        curve = client.get_metric_history(each.info.run_id, "lead/rmse")
        written = metrics[each.data.tags["model"]]["rmse"]
        assert {str(entry.step): pytest.approx(entry.value, rel=1e-5) for entry in curve} == written
        assert client.list_artifacts(each.info.run_id, "images")


def test_a_killed_pipeline_goes_on_where_it_was(finished: Finished, client: MlflowClient) -> None:
    assert "ingest" not in stages_run(finished.output)
    steps = [entry.step for entry in client.get_metric_history(finished.killed_run, "val/loss")]
    assert len(set(steps)) == EPOCHS  # in all, and in one run
    assert client.get_run(finished.killed_run).info.status == "FINISHED"


def test_a_killed_pipeline_ends_with_the_scores_of_an_undisturbed_one(
    finished: Finished, params: dict[str, Any], project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for model in (REFERENCE, NETWORK):
        monkeypatch.setattr(sys, "argv", ["stage", "--model", model])
        for stage in (train, forecast, verify):
            stage.main()
        scores = f"data/scores/{model}.nc"
        assert (project / scores).read_bytes() == (finished.folder / scores).read_bytes()


def test_a_second_run_runs_no_stage(finished: Finished) -> None:
    output = run(finished.folder, "dvc", "repro")
    assert not stages_run(output)
    assert "Data and pipelines are up to date." in output


@pytest.mark.parametrize(
    ("folder", "stages"),
    [
        ("models/recurrent", {f"train@{NETWORK}", f"forecast@{NETWORK}"}),
        ("models/unet", set()),  # no model of that kind is there
    ],
)
def test_a_changed_line_of_code_makes_its_own_stages_stale(finished: Finished, folder: str, stages: set[str]) -> None:
    path = finished.folder / folder / "__init__.py"
    with changed(path, path.read_text() + "# a change\n"):
        assert stale(finished.folder) == stages


def test_a_changed_option_makes_its_own_model_stale(finished: Finished, params: dict[str, Any]) -> None:
    wider = merged(params, {"models": {NETWORK: {"hidden": [9]}}})
    with changed(finished.folder / "params.yaml", yaml.safe_dump(wider)):
        run(finished.folder, "dvc", "repro", "-q", "check")
        assert stale(finished.folder) == {f"train@{NETWORK}", "compare"}
    run(finished.folder, "dvc", "repro", "-q", "check")


def test_equal_forecasts_are_not_verified_again(finished: Finished, copied: Path) -> None:
    with (copied / "models" / REFERENCE / "__init__.py").open("a") as file:
        file.write("# a change\n")
    output = run(copied, "dvc", "repro", f"verify@{REFERENCE}")
    assert stages_run(output) == {f"train@{REFERENCE}", f"forecast@{REFERENCE}"}
    assert stale(copied) == {"compare"}  # for the seconds they took, which never are the same
    lock = yaml.safe_load((copied / "dvc.lock").read_text())["stages"]
    assert lock["compare"] == yaml.safe_load((finished.folder / "dvc.lock").read_text())["stages"]["compare"]


def test_a_failing_stage_ends_the_run(finished: Finished, copied: Path, params: dict[str, Any]) -> None:
    later = {"start": "2030-01-01T00:00", "end": "2030-01-02T00:00"}  # where there is no frame
    with changed(copied / "params.yaml", yaml.safe_dump(merged(params, {"prepare": {"splits": {"test": later}}}))):
        process = subprocess.run(["dvc", "repro"], cwd=copied, env=ENVIRONMENT, capture_output=True, text=True)
    output = process.stdout + process.stderr
    assert process.returncode != 0
    assert stages_run(output) == {"prepare"}
    assert len(re.findall(r"prepare\.splits\.test", output)) == 1  # one line, no traceback
    assert "Traceback" not in output
    assert not stages_run(run(copied, "dvc", "repro"))  # what was there comes back from the cache
    assert (copied / METRICS).read_bytes() == (finished.folder / METRICS).read_bytes()


def test_a_colleague_pulls_and_runs_nothing(finished: Finished, copied: Path, tmp_path: Path) -> None:
    (copied / "data/raw/archive").mkdir()
    (copied / "data/raw/archive/frame.bin").write_bytes(b"raw")
    run(copied, "dvc", "add", "-q", "data/raw/archive")
    run(copied, "dvc", "remote", "add", "-q", "--default", "team", str(tmp_path / "remote"))
    assert stages_run(run(copied, "dvc", "repro")) == {"ingest"}  # the raw archive is a dependency of ingest
    commit(copied)
    run(copied, "dvc", "push", "-q")
    run(tmp_path, "git", "clone", "-q", str(copied), "colleague")
    colleague = tmp_path / "colleague"
    assert not (colleague / "data/observations.zarr").exists()
    run(colleague, "dvc", "pull", "-q")
    assert (colleague / "data/raw/archive/frame.bin").read_bytes() == b"raw"
    assert not stages_run(run(colleague, "dvc", "repro"))
    assert (colleague / METRICS).read_bytes() == (finished.folder / METRICS).read_bytes()


def test_the_report_names_the_run_of_each_model(finished: Finished, client: MlflowClient) -> None:
    text = (finished.folder / "data/comparison/report.html").read_text()
    assert text.count("<img") >= 3
    assert 'src="http' not in text
    assert "127.0.0.1" not in text  # a link to this machine is of use to nobody else
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    for each in client.search_runs([experiment.experiment_id]):
        assert f"<code>run {each.info.run_id}</code>" in text
    assert "convlstm quantiles" in text


@pytest.fixture
def server(finished: Finished) -> Iterator[str]:
    """Run `fieldcast ui` and yield the address that it prints, once MLflow answers."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["fieldcast", "ui", "--port", str(port)]
    with subprocess.Popen(command, cwd=finished.folder, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split("models: ")[1].strip()
            assert address.startswith(f"http://127.0.0.1:{port}/#/experiments")
            wait_until_up(f"http://127.0.0.1:{port}/health")
            yield address
        finally:
            process.terminate()
            process.wait(20)


def wait_until_up(address: str, seconds: float = 90) -> None:
    """Return once a server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            assert time.monotonic() < end, f"{address} does not answer"
            time.sleep(0.2)


def test_mlflow_opens_on_scores_of_all_models_against_lead_time(server: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 2000, "height": 1500})
    page.goto(server)
    for text in ("lead/rmse", "lead/csi_0.5_mm_h", "lead/csi_2_mm_h", *MODELS):
        expect(page.get_by_text(text).first).to_be_attached(timeout=90_000)
    page.close()
