"""Nothing that is learnt, chosen or calibrated depends on a value of the test period.

Two projects are alike but for the values after the last frame of a validation sample; missing cells stay missing. What
is prepared and trained has the same bytes in both.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, OBSERVATIONS, PREPARED
from fieldcast.pipeline.prepare import prepare
from fieldcast.pipeline.train import describe, train
from fieldcast.pipeline.training import validation
from fieldcast.pipeline.training.fit import Samples
from tests.conftest import rewrite

MODELS: dict[str, dict[str, Any]] = {
    "damped": {"kind": "damped_persistence"},
    "regression": {"kind": "lagrangian_regression"},
    "quantiles": {"kind": "lagrangian_regression", "output": "quantiles"},
    "linear": {"kind": "linear"},
    "network": {"kind": "recurrent", "hidden": [8], "patch": 4, "output": "quantiles"},
    "based": {"kind": "unet", "channels": 4, "levels": 1, "base": "damped_persistence"},
    "chosen": {"kind": "unet", "channels": 4, "levels": 1, "base": "auto"},
}


Pair = list[tuple[Path, config.Params]]


@pytest.fixture(scope="module")
def pair(prepared: Path, tracker: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return two prepared projects with their parameters; the second has other values in its test period."""
    project, changed = (tmp_path_factory.mktemp(name) / "project" for name in ("first", "second"))
    for folder in (project, changed):
        shutil.copytree(prepared, folder)
        shutil.copy(tracker, folder / "mlflow.db")
        params = rewrite(folder, {"models": MODELS, "train": {"epochs": 1}})
    observed = store.open_observations(project / OBSERVATIONS).load()
    reach = params.sample.horizon * pd.Timedelta(minutes=5)
    after = observed.time.values > np.datetime64(pd.Timestamp(params.prepare.splits.validation.end) + reach)
    assert 20 < after.sum() < len(after) / 2
    rain = observed["rain_rate"].values
    rain[after] = np.float32(3) * rain[after, ::-1] + np.float32(25)
    shutil.rmtree(changed / OBSERVATIONS)
    present = observed["frame_present"].values
    template = observed[["rain_rate"]].isel(time=slice(0, 0)).drop_vars("time")
    store.create_observations(changed / OBSERVATIONS, template, observed.time.values, present, 72)
    store.write_block(changed / OBSERVATIONS, 0, observed[["rain_rate"]])
    store.finish(changed / OBSERVATIONS)
    for folder in (project, changed):
        shutil.rmtree(folder / PREPARED)
        observations = store.open_observations(folder / OBSERVATIONS, chunks="shards")
        prepare(observations, params.prepare, params.sample.history, params.sample.horizon, folder / PREPARED)
    return [(project, params), (changed, params)]


def in_both(pair: Pair, monkeypatch: pytest.MonkeyPatch, made: Callable[[config.Params], Any]) -> list[Any]:
    """Return what `made` makes in each project."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    results = []
    for folder, params in pair:
        monkeypatch.chdir(folder)
        results.append(made(params))
    return results


def test_the_test_period_is_another(pair, monkeypatch):
    """What the probes change is what a test forecast starts from and is compared with."""
    reports = in_both(pair, monkeypatch, lambda _: (PREPARED / "quality.json").read_text())
    assert reports[0] != reports[1]

    def of_test(_: config.Params) -> np.ndarray:
        observed = store.open_observations(OBSERVATIONS)
        return observed["rain_rate"].sel(time=read_init_times(PREPARED / "init_times.csv", "test")).values

    first, second = in_both(pair, monkeypatch, of_test)
    np.testing.assert_array_equal(np.isnan(first), np.isnan(second))
    assert (first != second).mean() > 0.99


@pytest.mark.parametrize("name", ["statistics.json", "climatology.nc", "init_times.csv", "learned.json"])
def test_prepared_data(pair, monkeypatch, name):
    first, second = in_both(pair, monkeypatch, lambda _: (PREPARED / name).read_bytes())
    assert first == second


def test_samples(pair, monkeypatch):
    def all_values(params: config.Params) -> list[np.ndarray]:
        samples = Samples(params, describe(params, "network", "0" * 32))
        batches = [batch for loader in (samples.train_dataloader(), samples.val_dataloader()) for batch in loader]
        return [batch[name].numpy() for batch in batches for name in ("init_time", "history", "target")]

    first, second = in_both(pair, monkeypatch, all_values)
    assert len(first) == len(second) > 10
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Return the list of all comparisons of errors by which a base is chosen or kept, as they are made."""
    made, compare = [], validation.mean_log_ratio

    def recorded(errors: np.ndarray, others: np.ndarray) -> np.ndarray:
        made.append(errors.tobytes() + others.tobytes())
        return compare(errors, others)

    monkeypatch.setattr(validation, "mean_log_ratio", recorded)
    return made


def test_choice_of_a_base(pair, monkeypatch, compared):
    def chosen(params: config.Params) -> tuple[tuple[str, ...], list[bytes]]:
        compared.clear()
        return validation.fit_base(params, describe(params, "chosen", "0" * 32)).kinds, list(compared)

    first, second = in_both(pair, monkeypatch, chosen)
    assert first == second
    assert len(first[1]) > 1


@pytest.mark.parametrize("model", [name for name in MODELS if name != "chosen"])
def test_trained(pair, monkeypatch, compared, model):
    """Weights, regressions, calibration, decisions, and leads that keep their base."""

    def written(params: config.Params) -> tuple[dict[str, bytes], list[bytes]]:
        compared.clear()
        train(params, model)
        files = {name: (CHECKPOINTS / model / name).read_bytes() for name in ("config.json", "model.safetensors")}
        return files, list(compared)

    first, second = in_both(pair, monkeypatch, written)
    assert first == second
    assert len(first[1]) == (1 if model == "based" else 0)
