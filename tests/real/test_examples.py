"""The examples on their real data, with the training cut short: every stage runs, the numbers mean what they should."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fieldcast import models
from fieldcast.pipeline import config
from fieldcast.pipeline.cli.check import facts_of
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, FORECASTS, OBSERVATIONS, PREPARED
from fieldcast.pipeline.forecast import forecast
from fieldcast.pipeline.forecasting import calibration
from fieldcast.pipeline.forecasting.forecaster import forecast_members, load
from fieldcast.pipeline.ingest import ingest
from fieldcast.pipeline.prepare import prepare
from fieldcast.pipeline.train import train
from fieldcast.pipeline.verification.aggregation import scores_of
from fieldcast.pipeline.verification.blocks import verify
from fieldcast.pipeline.verification.probabilistic import interval
from fieldcast.pipeline.verification.scores import by_key
from tests.conftest import ROOT, merged

pytestmark = pytest.mark.slow

KNMI_MODELS = (  # one of each kind
    "persistence", "climatology", "damped_persistence", "advection", "lagrangian_quantiles", "steps", "convlstm",
    "video_transformer", "unet_quantiles",
)  # fmt: skip
ERA5_MODELS = (
    "persistence", "climatology", "damped_persistence", "linear", "video_transformer", "transformer_quantiles",
    "transformer_ensemble",
)  # fmt: skip

Scores = dict[str, dict[str, dict[int, float]]]


def run(
    example: str,
    changes: dict[str, Any],
    archive: Path,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tracker: Path,
    only: Sequence[str] | None = None,
) -> Scores:
    """Run an example's stages up to verification in `folder` and return each model's scores, or those of some."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(models, "scheduler_of", lambda _: "synchronous")  # processes take longer to start than to work
    (folder / "mlflow.db").write_bytes(tracker.read_bytes())
    (folder / "data/raw").mkdir(parents=True)
    for name, place in {"knmi": "radar/knmi", "era5": "era5", "mnist": "mnist"}.items():
        (folder / "data/raw" / name).symlink_to(archive / place)
    content = merged(yaml.safe_load((ROOT / "examples" / f"{example}.yaml").read_text()), changes)
    Path("params.yaml").write_text(yaml.safe_dump(content))
    facts_of(Path("params.yaml"))
    params = config.load()
    ingest(params.source, params.ingest, OBSERVATIONS)
    observations = store.open_observations(OBSERVATIONS, chunks="shards")
    prepare(observations, params.prepare, params.sample.history, params.sample.horizon, PREPARED)
    init_times = read_init_times(PREPARED / "init_times.csv", "test")
    scores = {}
    for model in only or params.models:
        train(params, model)
        out = FORECASTS / f"{model}.zarr"
        forecast(CHECKPOINTS / model, OBSERVATIONS, init_times, out, params.forecast, scheduler="synchronous")
        sums = verify(store.open_forecasts(out), store.open_observations(OBSERVATIONS), params.verify)
        scores[model] = by_key(scores_of(sums))
    return scores


def test_knmi_radar(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: Path) -> None:
    """A crop that reaches out of the radars' range: what is missing stays missing and reaches no weight."""
    changes = {
        "source": {"crop": {"y": [288, 544], "x": [64, 320]}, "coarsen": 4},
        "sample": {"crop_cells": 32},
        "train": {"epochs": 1},
        "models": {
            "convlstm": {"hidden": [8]},
            "video_transformer": {"dim": 16, "heads": 2, "channels": 4},
            "unet_quantiles": {"channels": 4},
        },
    }
    scores = run("knmi-radar", changes, archive, tmp_path / "knmi", monkeypatch, tracker, KNMI_MODELS)
    for model, curves in scores.items():
        for threshold in ("0.5", "1", "2", "5"):
            assert len(curves[f"csi_{threshold}_mm_h"]) == 6, model
        assert np.isfinite(list(curves["rmse"].values())).all()
    assert scores["advection"]["rmse"][15] < scores["persistence"]["rmse"][15]
    missing = np.isnan(store.open_observations(OBSERVATIONS)["rain_rate"].values).mean()
    assert 0.05 < missing < 0.9
    for model in scores:
        made = store.open_forecasts(FORECASTS / f"{model}.zarr")["rain_rate"]
        observed = store.open_observations(OBSERVATIONS)["rain_rate"].sel(time=made["init_time"].values).values
        never = np.isnan(store.open_observations(OBSERVATIONS)["rain_rate"].values).all(axis=0)
        assert np.isnan(made.values[..., never]).all(), model
        seen = np.isfinite(observed)
        assert np.isfinite(np.moveaxis(made.values, (0, -2, -1), (0, 1, 2))[seen]).all(), model
        assert np.nanmin(made.values) >= 0
        loaded = load(CHECKPOINTS / model)
        if loaded.network is not None:
            assert all(bool(np.isfinite(p.detach().numpy()).all()) for p in loaded.network.parameters())


@pytest.mark.parametrize(("name", "frames", "init_times"), [("bom", 144, "16"), ("fmi", 40, "8"), ("rmi", 39, "6")])
def test_the_other_radar_examples_fit_their_archives(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, frames: int, init_times: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    Path("data/raw", name).symlink_to(archive / "radar" / name)
    Path("params.yaml").write_text((ROOT / "examples" / f"{name}-radar.yaml").read_text())
    facts = facts_of(Path("params.yaml"))
    assert facts["frames"] == f"{frames} of {frames} (0 missing)"
    assert facts["init times"].endswith(f"test {init_times}")


@pytest.fixture(scope="module")
def era5(archive: Path, tmp_path_factory: pytest.TempPathFactory, tracker: Path) -> Iterator[tuple[Path, Scores]]:
    """Yield a folder with the stages' outputs and the scores of four references and three transformers."""
    folder = tmp_path_factory.mktemp("era5") / "project"
    narrow = {"stem": "patch", "dim": 32, "heads": 2}
    changes = {
        "train": {"epochs": 2},
        "prepare": {
            "splits": {  # days 1 to 20, as the expected scores of references have it
                "train": {"end": "2019-03-20T11:00", "every_steps": 3},
                "validation": {"start": "2019-03-21T23:00"},
                "test": {"every_steps": 2},
            }
        },
        "models": {model: narrow for model in ERA5_MODELS if "transformer" in model},
    }
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield folder, run("era5-uk", changes, archive, folder, monkeypatch, tracker, ERA5_MODELS)


def test_era5_references(era5: tuple[Path, Scores]) -> None:
    """RMSE in K at +1, +3, +6, +12 h, as computed independently from the same file (fit on days 1-21, from day 25)."""
    folder, scores = era5
    expected = {
        "persistence": (0.57, 1.55, 2.69, 3.65),
        "climatology": (1.85, 1.86, 1.87, 1.90),
        "damped_persistence": (0.43, 1.06, 1.65, 2.06),
    }
    for model, values in expected.items():
        computed = [scores[model]["rmse"][60 * hours] for hours in (1, 3, 6, 12)]
        np.testing.assert_allclose(computed, values, rtol=0.05, err_msg=model)
    linear = scores["linear"]["rmse"]
    np.testing.assert_allclose([linear[60 * hours] for hours in (4, 8, 12)], (1.24, 1.69, 1.77), rtol=0.03)
    for lead, error in linear.items():
        assert error < min(scores[other]["rmse"][lead] for other in expected)
    transformer = scores["video_transformer"]["rmse"]
    assert transformer[180] < 1.06
    assert transformer[360] < 1.65
    statistics = json.loads((folder / PREPARED / "statistics.json").read_text())
    assert statistics["channels"][0]["units"] == "K"


@pytest.mark.parametrize("model", ["transformer_quantiles", "transformer_ensemble"])
def test_era5_members(era5: tuple[Path, Scores], model: str) -> None:
    """CRPS is below the MAE of single values; calibrated on every other unseen day, 90 % intervals hold 87 to 93 %.

    Days of one week in turn are alike, which is what calibration asks for; a validation period of other weather is not.
    """
    folder, scores = era5
    assert np.mean(list(scores[model]["crps"].values())) < np.mean(list(scores["video_transformer"]["mae"].values()))
    table = folder / PREPARED / "init_times.csv"
    init_times = np.concatenate([read_init_times(table, split) for split in ("validation", "test")])
    days = init_times.astype("datetime64[D]").astype(int)
    forecaster = load(folder / CHECKPOINTS / model)
    forecaster.calibration = None
    config = forecaster.config
    reader = FrameReader(folder / OBSERVATIONS, config.channel_names, "ram")
    positions = reader.positions(init_times)
    history = reader.samples(positions, config.history)
    observed = reader.samples(positions, 0, config.horizon)
    members = forecast_members(forecaster, history, init_times, None, 0)
    covered = []
    for parity in (0, 1):
        fitted = days % 2 == parity
        calibrated = calibration.fit([(members[fitted], observed[fitted])], int(fitted.sum()))(members[~fitted])
        low, high = interval(np.moveaxis(calibrated, 1, -3), 0.9)
        covered.append(((observed[~fitted] >= low) & (observed[~fitted] <= high)).mean())
    assert all(0.87 <= share <= 0.93 for share in covered), covered


def test_moving_mnist(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: Path) -> None:
    """MSE as the field defines it: squared error summed over a frame's pixels, mean over frames and sequences."""
    changes = {
        "source": {"sequences_train": 60, "sequences_test": 20},
        "prepare": {
            "splits": {
                "train": {"start": "2000-01-01T09:00", "end": "2000-02-09T09:00"},  # days 0 to 39
                "validation": {"start": "2000-02-15T09:00", "end": "2000-02-24T09:00"},  # 45 to 54
                "test": {"start": "2000-03-01T09:00", "end": "2000-03-20T09:00"},  # 60 to 79: other digits
            }
        },
        "train": {"epochs": 1, "batch_size": 4, "max_minutes": None},
        "models": {
            "convlstm": {"hidden": [16]},
            "simvp": {"hidden": 32},
            "unet": {"channels": 4, "levels": 1},
            "video_transformer": {"dim": 32, "heads": 2, "channels": 4},
        },
    }
    scores = run("moving-mnist", changes, archive, tmp_path / "mnist", monkeypatch, tracker)

    def mse(model: str) -> float:
        return float(np.mean(list(scores[model]["mse_frame"].values())))

    made = store.open_forecasts(FORECASTS / "persistence.zarr")["intensity"]
    observed = store.open_observations(OBSERVATIONS)["intensity"]
    actual = np.stack([observed.sel(time=times).values for times in made["valid_time"].values])
    assert mse("persistence") == pytest.approx(((made.values - actual) ** 2).sum(axis=(2, 3)).mean(), rel=1e-5)
    for learned in ("convlstm", "simvp", "unet", "video_transformer"):
        assert mse(learned) < mse("persistence")
