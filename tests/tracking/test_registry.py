from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.datasets.paths import CHECKPOINTS, SCORES
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.errors import InputError, TrackerError
from fieldcast.pipeline.forecasting import costs
from fieldcast.pipeline.tracking import runs as tracking
from fieldcast.pipeline.tracking.comparison import log_comparison, log_scores
from fieldcast.pipeline.tracking.registry import CHALLENGER, CHAMPION, Registry
from fieldcast.pipeline.verification.aggregation import frame_sums, label_sums
from fieldcast.pipeline.verification.sums_file import write_sums
from tests.conftest import rewrite
from tests.tracking.tracked import train_tracked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
MODELS = ("persistence", "climatology")


def sums(error: float) -> xr.Dataset:
    """Return sums of a forecast that is too high by `error`."""
    observed = np.zeros((2, 1, 4, 4), np.float32)
    coords = {
        "init_time": xr.DataArray(np.array(["2024-01-01", "2024-01-02"], "datetime64[ns]"), dims="init_time"),
        "lead_time": xr.DataArray(np.array([300], "timedelta64[s]").astype("timedelta64[ns]"), dims="lead_time"),
    }
    arrays = frame_sums(observed + np.float32(error), observed, observed == 0, [], [])
    return label_sums(arrays, "rain_rate", "mm h-1", coords, [], [])


@pytest.fixture
def registry(project: Path) -> Registry:
    """Return a registry with a version and a scored run of two models."""
    params = rewrite(project, {"models": {name: {"kind": name} for name in MODELS}})
    for k, name in enumerate(MODELS):
        run = train_tracked(params, name)
        write_sums(sums(k + 1.0), SCORES / f"{name}.nc")
        log_scores(run, name, {"rmse": {5: 1.0}}, SCORES / f"{name}.nc")
    runs = tracking.runs_of("small", {name: directory_digest(CHECKPOINTS / name) for name in MODELS})
    (project / "comparison").mkdir()
    log_comparison(runs, project / "comparison", {}, {"persistence": costs.Costs(forecast_milliseconds=2.5)})
    return Registry("small", project)


def test_a_run_comes_back_with_its_sums_and_costs(registry: Registry) -> None:
    run = registry.scored("climatology")
    assert (run.model, run.kind) == ("climatology", "climatology")
    assert run.checkpoint == directory_digest(CHECKPOINTS / "climatology")
    assert run.data == read_digest(Path("data/prepared"))
    xr.testing.assert_identical(run.sums.drop_attrs(), sums(2.0).drop_attrs())
    assert registry.scored("persistence").costs.forecast_milliseconds == 2.5
    assert registry.scored(run.run_id).run_id == run.run_id


def test_aliases_move_with_their_reasons(registry: Registry) -> None:
    assert registry.version_with(CHAMPION) is None
    first, second = (registry.version_of(registry.scored(name).run_id) for name in MODELS)
    assert first is not None
    assert second is not None
    registry.appoint(first, CHAMPION, "nobody else")
    registry.appoint(second, CHALLENGER, "no difference")
    assert registry.version_with(CHAMPION) == first
    assert registry.version_with(CHALLENGER) == second
    described = registry.client.get_model_version("small", second.number).description
    assert described == "challenger: no difference"
    registry.appoint(second, CHAMPION, "better by far")
    assert registry.version_with(CHAMPION) == second
    assert registry.version_with(CHALLENGER) is None
    assert registry.scored(CHAMPION).model == "climatology"
    assert registry.version_of_checkpoint(first.checkpoint) == first
    assert registry.version_of_checkpoint("0" * 32) is None


def test_what_is_not_there_is_named(registry: Registry, project: Path) -> None:
    with pytest.raises(InputError, match="no run or alias 'unet'; expected a run's id or name"):
        registry.scored("unet")
    with pytest.raises(InputError, match="MLflow has no run 0000"):
        registry.scored("0" * 32)
    train_tracked(rewrite(project, {}), "damped_persistence")
    with pytest.raises(InputError, match="0 files of scores in MLflow, expected one, logged by the stage compare"):
        registry.scored("damped_persistence")


def test_a_silent_tracker_is_no_missing_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the discard port: nothing listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    with pytest.raises(TrackerError, match="MLflow does not answer"):
        Registry("small", project).scored("persistence")
