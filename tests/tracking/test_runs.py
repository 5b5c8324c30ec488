import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import xarray as xr
from mlflow import MlflowClient

from fieldcast import load
from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.datasets.times import to_seconds
from fieldcast.pipeline.forecasting.costs import Costs
from fieldcast.pipeline.tracking import patience
from fieldcast.pipeline.tracking import runs as tracking
from fieldcast.pipeline.tracking.comparison import log_comparison, log_scores
from fieldcast.pipeline.tracking.identity import complete
from fieldcast.pipeline.train import train
from tests.conftest import rewrite
from tests.tracking.tracked import run_of, train_tracked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@pytest.fixture
def client(project: Path) -> MlflowClient:
    return MlflowClient(patience.tracking_uri(project))


@pytest.fixture
def trained(project: Path) -> tracking.Run:
    return train_tracked(rewrite(project, {}), "damped_persistence")


def test_training_leaves_one_complete_run(trained: tracking.Run, client: MlflowClient) -> None:
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == trained.run_id
    assert run.info.status == "FINISHED"
    assert run.data.params["model.name"] == "damped_persistence"
    assert run.data.tags["model"] == "damped_persistence"
    (entry,) = run.inputs.dataset_inputs
    assert entry.dataset.digest == read_digest(PREPARED)
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"params.yaml", "data"}


def test_registered_version_loads_without_pickle_and_without_this_project(
    trained: tracking.Run, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (version,) = client.search_model_versions("name='small'")
    observed = store.open_observations(OBSERVATIONS)
    init_time = read_init_times(PREPARED / "init_times.csv", "test")[:1]
    history = observed.sel(time=init_time + np.array([-10, -5, 0], dtype="timedelta64[m]")).load()
    expected = load("data/checkpoints/damped_persistence").forecast(history)
    client.set_registered_model_alias("small", "champion", version.version)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    xr.testing.assert_identical(load("models:/small@champion").forecast(history), expected)
    uri = patience.tracking_uri(Path())
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    mlflow.set_tracking_uri(uri)
    loaded = mlflow.pyfunc.load_model(f"models:/small/{version.version}")
    xr.testing.assert_identical(loaded.predict(history), expected)
    arrays = {"history": history["rain_rate"].values[None, :, None], "init_time": to_seconds(init_time)}
    np.testing.assert_array_equal(loaded.predict(arrays)[:, 0, :, 0], expected["rain_rate"])


def test_scores_are_curves_over_lead_time(trained: tracking.Run, client: MlflowClient, tmp_path: Path) -> None:
    (tmp_path / "sums.nc").write_bytes(b"sums")
    scores = {"rmse": {5: 1.0, 10: 2.0}, "csi_1_mm_h": {5: 0.5, 10: float("nan")}, "far_1_mm_h": {5: 0.1}}
    run = run_of("small", "damped_persistence")
    assert run.run_id == trained.run_id
    for _ in range(2):  # the second time it has these scores
        log_scores(run, "damped_persistence", scores, tmp_path / "sums.nc")
    assert run.run_id is not None
    curve = client.get_metric_history(run.run_id, "lead/rmse")
    assert [(entry.step, entry.value) for entry in curve] == [(5, 1.0), (10, 2.0)]
    assert [entry.step for entry in client.get_metric_history(run.run_id, "lead/csi_1_mm_h")] == [5]
    assert [entry.value for entry in client.get_metric_history(run.run_id, "lead_more/far_1_mm_h")] == [0.1]
    assert client.get_run(run.run_id).data.metrics["test/rmse"] == 1.5
    assert client.get_run(run.run_id).data.tags["mlflow.runColor"] == "#56b4e9"
    assert [file.path for file in client.list_artifacts(run.run_id, "scores")] == ["scores/sums.nc"]


def test_an_unknown_checkpoint_gets_a_complete_run(trained: tracking.Run, client: MlflowClient) -> None:
    """DVC's run cache can bring back a checkpoint that this tracker has never seen."""
    assert trained.run_id is not None
    client.delete_run(trained.run_id)
    run = run_of("small", "damped_persistence")
    assert run.run_id not in (None, trained.run_id)
    complete(run, config.load(), "damped_persistence")
    complete(run, config.load(), "damped_persistence")
    assert client.get_run(str(run.run_id)).data.params["model.kind"] == "damped_persistence"
    versions = client.search_model_versions("name='small'")
    assert sorted(version.run_id for version in versions) == sorted([trained.run_id, str(run.run_id)])


def test_images_share_a_key_across_models(project: Path, client: MlflowClient) -> None:
    params = rewrite(project, {})
    images = {}
    for model, shade in (("persistence", 50), ("climatology", 90)):
        train_tracked(params, model)
        images[model] = np.full((32, 32, 3), shade, dtype=np.uint8)
    folder = project / "comparison"
    folder.mkdir()
    (folder / "report.html").write_text("<p>report</p>")
    runs = tracking.runs_of("small", {name: store.directory_digest(CHECKPOINTS / name) for name in images})
    spent = {name: Costs(forecast_milliseconds=1.5) for name in images}
    log_comparison(runs, folder, {"case_1": images}, spent)
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    for run in client.search_runs([experiment.experiment_id]):
        names = [Path(file.path).name for file in client.list_artifacts(run.info.run_id, "images")]
        assert run.data.metrics["spent/forecast_milliseconds"] == 1.5
        assert runs[run.data.tags["model"]].page() == f"run {run.info.run_id}"
        assert any(name.startswith("case_1") for name in names)
        assert [file.path for file in client.list_artifacts(run.info.run_id, "comparison")] == [
            "comparison/report.html"
        ]


def test_a_dead_tracker_costs_seconds_and_no_work(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    started = time.monotonic()
    with caplog.at_level(logging.WARNING):
        params = rewrite(project, {})
        for name in ("persistence", "climatology"):
            train(params, name)
        runs = tracking.runs_of("small", {"persistence": "a", "climatology": "b"})
        complete(runs["persistence"], params, "persistence")
    assert (CHECKPOINTS / "persistence" / "config.json").exists()
    assert time.monotonic() - started < 30
    assert caplog.text.count("MLflow does not answer") == 1


def test_a_tracker_that_dies_is_reported_once(project: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Dying:
        def log_batch(self, *args: object, **kwargs: object) -> None:
            raise ConnectionError("gone\nfor good")

    run = tracking.Run(Dying(), "1", "small")  # type: ignore[arg-type]
    with caplog.at_level(logging.WARNING):
        run.metrics({"a": 1.0}, 0)
        run.metrics({"a": 1.0}, 1)
    assert caplog.text.count("gone") == 1


def test_uri_of_the_environment_wins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert patience.tracking_uri(tmp_path) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracker:5000")
    assert patience.tracking_uri(tmp_path) == "http://tracker:5000"


@pytest.mark.slow
def test_two_processes_may_make_the_database(tmp_path: Path) -> None:
    """MLflow's own migration of a new database fails when two begin it at once."""
    code = "from pathlib import Path; from fieldcast.pipeline.tracking.runs import open_run; "
    code += "open_run('e', 'm', 'c', 's', Path('p'))"
    environment = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2])}
    both = [
        subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    errors = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert not [error for error in errors if "untracked" in error]
    assert [path.name for path in (tmp_path / "p").glob("*mlflow*")] == ["mlflow.db"]


def test_a_password_is_left_out_of_messages() -> None:
    error = ConnectionError("POST http://anna:secret@tracker:5000/api failed\nand more")
    assert patience.first_line(error) == "POST http://tracker:5000/api failed"
