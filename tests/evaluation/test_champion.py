import json
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from mlflow.tracking._tracking_service import utils
from typer.testing import CliRunner

from fieldcast.pipeline import config
from fieldcast.pipeline.cli.main import app
from fieldcast.pipeline.config import Params
from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, SCORES
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.champion import promote_by_rule
from fieldcast.pipeline.evaluation.comparison import Entry, compare_all
from fieldcast.pipeline.tracking.comparison import log_scores
from fieldcast.pipeline.tracking.registry import CHALLENGER, CHAMPION, Registry
from fieldcast.pipeline.train import train
from fieldcast.pipeline.verification.aggregation import frame_sums, label_sums
from fieldcast.pipeline.verification.sums_file import write_sums
from tests.conftest import rewrite
from tests.tracking.tracked import run_of, train_tracked

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
MODELS = ("persistence", "climatology", "damped_persistence")
INITS = 40


def sums(error: float, valid: np.ndarray | None = None) -> xr.Dataset:
    """Return sums of forecasts that are too high by about `error`, each model by other amounts."""
    observed = np.zeros((INITS, 2, 5, 5), np.float32)
    noise = np.random.default_rng(int(1000 * error)).normal(1, 0.1, (INITS, 2, 5, 5))
    coords = {
        "init_time": xr.DataArray(
            np.datetime64("2024-01-01", "ns") + np.arange(INITS) * np.timedelta64(1, "h"), dims="init_time"
        ),
        "lead_time": xr.DataArray(np.array([300, 600], "timedelta64[s]").astype("timedelta64[ns]"), dims="lead_time"),
    }
    kept = np.ones(observed.shape, bool) if valid is None else valid
    arrays = frame_sums((error * noise).astype(np.float32), observed, kept, [], [])
    return label_sums(arrays, "rain_rate", "mm h-1", coords, [], [])


class Office:
    """A project whose models have versions and scores."""

    def __init__(self, project: Path) -> None:
        self.params = config.read(project / "params.yaml")
        self.registry = Registry("small", project)

    def digests(self) -> dict[str, str]:
        return {name: directory_digest(CHECKPOINTS / name) for name in MODELS}

    def score(self, errors: dict[str, float]) -> dict[str, Entry]:
        """Return models with these errors, which their runs know as well."""
        entries = {}
        for name, error in errors.items():
            entries[name] = Entry(sums(error), "recurrent" if name == "climatology" else name)
            write_sums(entries[name].sums, SCORES / f"{name}.nc")
            log_scores(run_of("small", name), entries[name].kind, {}, SCORES / f"{name}.nc")
        return entries

    def promote(self, errors: dict[str, float], params: Params | None = None) -> list[str]:
        entries, params = self.score(errors), params or self.params
        return promote_by_rule(entries, compare_all(entries, params.compare), self.digests(), params, self.registry)

    def holds(self, alias: str) -> str | None:
        version = self.registry.version_with(alias)
        return None if version is None else version.model

    def reason(self, alias: str) -> str:
        version = self.registry.version_with(alias)
        assert version is not None
        return str(self.registry.client.get_model_version("small", version.number).description)


@pytest.fixture(scope="module")
def trained(prepared: Path, tracker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project whose models are trained and registered; tests work on copies."""
    folder = tmp_path_factory.mktemp("champion") / "project"
    shutil.copytree(prepared, folder)
    shutil.copy(tracker, folder / "mlflow.db")
    free = {"leads_minutes": None, "guards": {"max_mean_error": None, "min_coverage": None, "max_coverage": None}}
    params = rewrite(folder, {"compare": {"resamples": 200}, "promotion": free})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        for name in MODELS:
            train_tracked(params, name)
    return folder


@pytest.fixture
def office(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Office:
    folder = Path(shutil.copytree(trained, tmp_path / "project"))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(utils, "_artifact_repos_cache", OrderedDict())  # the runs of each copy have the same names
    return Office(folder)


def test_the_first_champion_is_the_best_reference_unless_a_model_is_better(office: Office) -> None:
    said = office.promote({"persistence": 1.0, "climatology": 1.5})
    assert (office.holds(CHAMPION), office.holds(CHALLENGER)) == ("persistence", "climatology")
    assert said[0].startswith("champion: persistence, version ")
    assert "the best reference" in office.reason(CHAMPION)
    assert "is 49.8 % higher than that of persistence" in office.reason(CHALLENGER)


def test_a_better_model_moves_the_alias_and_a_worse_one_does_not(office: Office) -> None:
    office.promote({"persistence": 1.0, "climatology": 0.8})
    assert office.holds(CHAMPION) == "climatology"
    assert "lower than that of persistence" in office.reason(CHAMPION)
    said = office.promote({"climatology": 0.8, "damped_persistence": 0.9})
    assert (office.holds(CHAMPION), office.holds(CHALLENGER)) == ("climatology", "damped_persistence")
    assert said[0].startswith("champion: climatology stays")
    assert office.reason(CHALLENGER).startswith("challenger: not promoted: ")
    office.promote({"climatology": 0.8, "damped_persistence": 0.5})
    assert (office.holds(CHAMPION), office.holds(CHALLENGER)) == ("damped_persistence", None)


def test_a_champion_of_an_earlier_training_is_compared_by_its_run(office: Office) -> None:
    office.promote({"climatology": 0.8, "persistence": 1.0})
    said = office.promote({"persistence": 1.0, "damped_persistence": 0.6})
    assert office.holds(CHAMPION) == "damped_persistence"
    assert "lower than that of climatology of version" in said[0]


def test_a_champion_scored_on_other_cells_stays(office: Office) -> None:
    office.promote({"climatology": 0.8, "persistence": 1.0})
    valid = np.ones((INITS, 2, 5, 5), bool)
    valid[0, 0, 0] = False
    write_sums(sums(0.8, valid), SCORES / "climatology.nc")
    log_scores(run_of("small", "climatology"), "recurrent", {}, SCORES / "climatology.nc")
    said = office.promote({"persistence": 1.0, "damped_persistence": 0.6})
    assert office.holds(CHAMPION) == "climatology"
    assert "other cells" in " ".join(said)


def test_a_guard_keeps_a_better_model_out(office: Office) -> None:
    promotion = config.Promotion(guards=config.Guards(max_mean_error=0.5))
    strict = office.params.model_copy(update={"promotion": promotion})
    office.promote({"persistence": 1.0, "climatology": 0.8}, strict)
    assert (office.holds(CHAMPION), office.holds(CHALLENGER)) == ("persistence", "climatology")
    assert "above 0.5 (promotion.guards.max_mean_error)" in office.reason(CHALLENGER)


def test_by_hand_with_the_evidence_shown(office: Office) -> None:
    office.promote({"persistence": 1.0, "climatology": 1.5})
    seen = CliRunner().invoke(app, ["promote", "--dry-run"])
    assert seen.exit_code == 0, seen.output
    assert "higher than that of persistence" in " ".join(seen.output.split())
    assert office.holds(CHAMPION) == "persistence"
    assert CliRunner().invoke(app, ["promote", "climatology"], input="n\n").exit_code == 1
    assert office.holds(CHAMPION) == "persistence"
    assert CliRunner().invoke(app, ["promote", "climatology", "--yes"]).exit_code == 0
    assert office.holds(CHAMPION) == "climatology"
    assert office.reason(CHAMPION).startswith("champion: by hand; not promoted: ")
    again = CliRunner().invoke(app, ["promote", "climatology", "--yes"])
    assert isinstance(again.exception, InputError)
    assert "the champion already" in str(again.exception)


def test_by_hand_where_nobody_is_in_office(office: Office) -> None:
    office.score({"climatology": 1.5})
    seen = CliRunner().invoke(app, ["promote", "climatology", "--yes"])
    assert seen.exit_code == 0, seen.output
    assert office.holds(CHAMPION) == "climatology"
    assert office.reason(CHAMPION).startswith("champion: by hand; ")


def test_any_runs_are_compared(office: Office, tmp_path: Path) -> None:
    office.promote({"persistence": 1.0, "climatology": 0.8})
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["compare", "persistence", "champion", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "climatology is better than every other model at every lead" in " ".join(done.output.split())
    assert json.loads((out / "scores.json").read_text())["persistence"]["rmse"]["5"] == pytest.approx(1.0, rel=0.05)
    assert (out / "report.html").stat().st_size > 10_000
    one = CliRunner().invoke(app, ["compare", "climatology", "champion"])
    assert "1 run, expected two or more" in str(one.exception)


def test_runs_of_other_data_are_refused(office: Office) -> None:
    office.score({"persistence": 1.0, "climatology": 0.8})
    (Path("data/prepared") / "learned.json").write_text(json.dumps({"sha256": "0" * 64}))
    manifest.write(Path("data/prepared"))
    train(office.params, "persistence")
    office.score({"persistence": 1.0})
    other = CliRunner().invoke(app, ["compare", "climatology", "persistence"])
    assert "expected one data digest" in str(other.exception)
