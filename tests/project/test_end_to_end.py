"""The whole pipeline under DVC, as a user runs it: skipping, what a change reruns, a team's remote, kill -9."""

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

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
SCORES = "data/comparison/metrics.json"


def run(folder: Path, *command: str) -> str:
    """Return what a command prints; its failure fails the test with all that it said."""
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def make_project(folder: Path, params: dict[str, Any], tracker: Path) -> Path:
    """Return a repository with this project's code and small parameters."""
    folder.mkdir()
    for name in ("fieldcast", "pipeline", "models", "data/raw"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", ".dvc/config", ".dvc/.gitignore"):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    shutil.copy(tracker, folder / "mlflow.db")
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    run(folder, "git", "init", "-q")
    commit(folder)
    return folder


def commit(folder: Path) -> None:
    run(folder, "git", "add", "-A")
    run(folder, "git", "commit", "-q", "-m", "state")


def only(params: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return the parameters with these models alone: every one is three more processes."""
    return {**params, "models": {name: entry for name, entry in params["models"].items() if name in names}}


@pytest.fixture(scope="module")
def params(small: dict[str, Any]) -> dict[str, Any]:
    every = merged(small, {"train": {"epochs": 5}})
    references = {"climatology", "damped_persistence", "advection", "steps"}  # their stages are those of persistence
    return only(every, set(every["models"]) - references)


@pytest.fixture(scope="module")
def done(params: dict[str, Any], tracker: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return a project after its first `dvc repro`, and what that printed."""
    folder = make_project(tmp_path_factory.mktemp("first") / "project", params, tracker)
    said = run(folder, "dvc", "repro")
    commit(folder)
    return folder, said


def changed(folder: Path) -> set[str]:
    """Return the stages that DVC would run first."""
    return set(json.loads(run(folder, "dvc", "status", "--json")))


def test_all_models_are_compared(done: tuple[Path, str], params: dict[str, Any]) -> None:
    folder, said = done
    for model in params["models"]:
        assert model in said
    metrics = json.loads((folder / SCORES).read_text())
    assert sorted(metrics) == sorted(params["models"])
    for scores in metrics.values():
        assert set(scores["rmse"]) == {"5", "10", "15", "20"}
        assert {"csi_0.5_mm_h", "csi_2_mm_h", "fss_0.5_mm_h_10_km", "far_2_mm_h", "mean_error"} <= set(scores)
    for name in ("report.html", "figures/skill.png", "figures/case.png", "figures/case.gif"):
        assert (folder / "data/comparison" / name).stat().st_size > 5_000


def test_runs_hold_scores_and_images(done: tuple[Path, str]) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{done[0] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    metrics = json.loads((done[0] / SCORES).read_text())
    assert len(runs) == len(metrics)
    versions = client.search_model_versions("name='small'")
    assert len(versions) == len(metrics)
    champion = client.get_model_version_by_alias("small", "champion")
    assert champion.description.startswith("champion: ")
    for found in runs:
        curve = client.get_metric_history(found.info.run_id, "lead/rmse")
        written = metrics[found.data.tags["model"]]["rmse"]
        assert {str(entry.step): pytest.approx(entry.value, rel=1e-5) for entry in curve} == written
        assert client.list_artifacts(found.info.run_id, "images")


def test_second_run_runs_no_stage(done: tuple[Path, str]) -> None:
    said = run(done[0], "dvc", "repro")
    assert "Running stage" not in said
    assert "Data and pipelines are up to date." in said


def test_a_change_reruns_its_own_model_alone(done: tuple[Path, str], params: dict[str, Any], tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(done[0], folder, symlinks=True)
    path = folder / "params.yaml"
    path.write_text(
        yaml.safe_dump(merged(yaml.safe_load(path.read_text()), {"models": {"video_transformer": {"dim": 24}}}))
    )
    assert changed(folder) == {"train@video_transformer", "compare"}
    shutil.copy(done[0] / "params.yaml", path)
    of_kind = [name for name, entry in params["models"].items() if entry["kind"] == "recurrent"]
    assert of_kind == ["convlstm", "convlstm_quantiles"]
    with (folder / "models/recurrent/convlstm.py").open("a") as file:
        file.write("# a change\n")
    assert changed(folder) == {f"{stage}@{name}" for stage in ("train", "forecast") for name in of_kind}
    said = run(folder, "dvc", "repro")  # the same weights come out, so nothing is verified again
    assert {line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")} == {
        *(f"{stage}@{name}" for stage in ("train", "forecast") for name in of_kind),
        "compare",  # for the seconds they took, which never are the same
    }
    assert (folder / SCORES).read_bytes() == (done[0] / SCORES).read_bytes()


def test_a_colleague_pulls_and_runs_nothing(done: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "project"
    shutil.copytree(done[0], folder, symlinks=True)
    (folder / "data/raw/archive").mkdir()
    (folder / "data/raw/archive/frame.bin").write_bytes(b"raw")
    run(folder, "dvc", "add", "-q", "data/raw/archive")
    run(folder, "dvc", "remote", "add", "-q", "--default", "team", str(tmp_path / "remote"))
    assert changed(folder) == {"ingest"}  # the raw archive is a dependency of ingest
    run(folder, "dvc", "repro", "-q")
    commit(folder)
    run(folder, "dvc", "push", "-q")
    run(tmp_path, "git", "clone", "-q", str(folder), "colleague")
    colleague = tmp_path / "colleague"
    assert not (colleague / "data/observations.zarr").exists()
    run(colleague, "dvc", "pull", "-q")
    assert (colleague / "data/raw/archive/frame.bin").read_bytes() == b"raw"
    said = run(colleague, "dvc", "repro")
    assert "Running stage" not in said
    assert (colleague / SCORES).read_bytes() == (folder / SCORES).read_bytes() == (done[0] / SCORES).read_bytes()
    assert json.loads(run(colleague, "dvc", "metrics", "show", "--json"))


def kill_when(folder: Path, ready: Callable[[], bool]) -> None:
    """Start `dvc repro` and end it and all its children by SIGKILL as soon as `ready` says so."""
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


def test_killed_and_run_again_ends_with_the_same_scores(
    done: tuple[Path, str], params: dict[str, Any], tracker: Path, tmp_path: Path
) -> None:
    few = {"persistence", "convlstm"}
    folder = make_project(tmp_path / "project", only(params, few), tracker)
    kill_when(folder, (folder / "data/.observations.zarr.partial").exists)
    assert not (folder / "data/observations.zarr").exists()
    kill_when(folder, (folder / "data/resume/convlstm/last.ckpt").exists)
    assert not (folder / "data/checkpoints/convlstm").exists()
    run_id = (folder / "data/resume/convlstm/run_id").read_text()
    said = run(folder, "dvc", "repro")
    assert "Running stage 'ingest'" not in said
    here, undisturbed = (json.loads((project / SCORES).read_text()) for project in (folder, done[0]))
    assert here == {name: undisturbed[name] for name in few}

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    history = client.get_metric_history(run_id, "val/loss")
    steps = [entry.step for entry in history]
    assert len(set(steps)) == 5  # the same run goes on: five epochs in all
    assert client.get_run(run_id).info.status == "FINISHED"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HEADLESS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=2000,1500",
    "--virtual-time-budget=40000",
]


def page(address: str, profile: Path) -> str:
    """Return the text of a page after its scripts have run."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *HEADLESS, f"--user-data-dir={profile}", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_report_is_one_page_that_needs_no_other(done: tuple[Path, str], params: dict[str, Any], tmp_path: Path) -> None:
    path = done[0] / "data/comparison/report.html"
    alone = tmp_path / "report.html"
    alone.write_bytes(path.read_bytes())
    text = page(alone.as_uri(), tmp_path / "profile")
    assert text.count("<img") >= 3
    assert 'src="http' not in text
    links = re.findall('href="(http[^"]*)', text)
    assert all(link.startswith("http://127.0.0.1:5000/#/experiments/") for link in links)
    assert len(set(links)) == len(params["models"])  # a run of each model; nothing is loaded from there
    assert "video transformer" in text


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
def test_mlflow_opens_on_scores_of_all_models_against_lead_time(done: tuple[Path, str], tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["fieldcast", "ui", "--port", str(port)]
    with subprocess.Popen(command, cwd=done[0], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split("models: ")[1].strip()
            wait_until_up(f"http://127.0.0.1:{port}/health")
            text = page(address, tmp_path / "profile")
        finally:
            server.terminate()
            server.wait(20)
    for chart in ("lead/rmse", "lead/csi_0.5_mm_h", "lead/csi_2_mm_h"):
        assert chart in text
    for model in ("persistence", "convlstm", "video_transformer", "convlstm_quantiles"):
        assert model in text


def wait_until_up(address: str, seconds: float = 90) -> None:
    """Return once a server answers."""
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=2):
                return
        except OSError:
            assert time.monotonic() < end, f"{address} does not answer"
            time.sleep(0.5)
