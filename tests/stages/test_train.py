import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from fieldcast.models.damped_persistence.options import DampedPersistenceOptions
from fieldcast.models.layers.outputs import BASES
from fieldcast.models.layers.reference import Case
from fieldcast.models.linear import forecast as linear
from fieldcast.models.linear.options import LinearOptions
from fieldcast.models.recurrent.convgru import ConvGRUCell
from fieldcast.models.recurrent.convlstm import ConvLSTMCell
from fieldcast.pipeline import check, config
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.code import code_digest
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import CHECKED, CHECKPOINTS, OBSERVATIONS, PREPARED, RESUME
from fieldcast.pipeline.datasets.preparation.climatology import complete, read_climatology
from fieldcast.pipeline.datasets.preparation.learned import read_digest
from fieldcast.pipeline.datasets.signature import Statistics
from fieldcast.pipeline.datasets.times import from_minutes
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecast import forecast
from fieldcast.pipeline.forecasting import costs
from fieldcast.pipeline.forecasting.checkpoint import CheckpointConfig, Fitted
from fieldcast.pipeline.forecasting.forecaster import Forecaster, build_network, load
from fieldcast.pipeline.train import (
    await_resume,
    code_of,
    describe,
    fingerprint_of,
    holds,
    is_first_process,
    prepare_resume,
    train,
)
from fieldcast.pipeline.training import fit
from fieldcast.pipeline.training.lightning_module import Budget, ForecastModule, learning_rate_scale
from fieldcast.pipeline.training.references import fit_kind
from fieldcast.pipeline.training.validation import fit_base, mean_log_ratio, squared_errors, with_share
from tests.campaign import cases
from tests.conftest import ROOT, rewrite


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def test_learning_rate_rises_then_falls_to_zero() -> None:
    scales = [learning_rate_scale(progress, 0.1) for progress in np.linspace(0, 1, 101)]
    assert scales[0] > 0
    assert max(scales) == pytest.approx(1, abs=1e-3)
    assert np.argmax(scales) == 10
    assert scales[-1] == pytest.approx(0, abs=1e-9)
    assert all(b <= a + 1e-9 for a, b in pairwise(scales[10:]))


def test_budget_counts_steps_or_seconds_whichever_is_further(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 130.0, 130.0])
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    budget = Budget(max_minutes=1, steps=100)
    budget.seconds_before = 15  # from before an interruption
    budget.start()
    assert budget.progress(10) == pytest.approx(45 / 60)
    assert budget.progress(90) == pytest.approx(0.9)
    assert Budget(max_minutes=None, steps=100).progress(10) == 0.1


@pytest.fixture
def convlstm(project: Path) -> Path:
    rewrite(project, {"train": {"epochs": 4}})
    return project


class StopAfter(Callback):
    """Ends the process's training as a kill would, right after an epoch's checkpoint."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: ForecastModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise RuntimeError("interrupted")


@pytest.mark.slow
def test_resumed_training_equals_an_undisturbed_one(convlstm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        "models": {"convlstm": {"dropout": 0.2}},
        "sample": {"crop_cells": 16},
        "train": {"loss": "balanced", "rollout": {"start_leads": 1, "ramp_fraction": 0.7}},
    }
    params = rewrite(convlstm, changes)
    train(params, "convlstm")
    undisturbed = weights(CHECKPOINTS / "convlstm")
    shutil.rmtree(CHECKPOINTS)
    make = fit.make_trainer

    def interrupted(options: Any, callbacks: list[Callback], logger: Any) -> Trainer:
        return make(options, [*callbacks, StopAfter(2)], logger)

    monkeypatch.setattr(fit, "make_trainer", interrupted)
    with pytest.raises(RuntimeError, match="interrupted"):
        train(params, "convlstm")
    run = (RESUME / "convlstm" / "run_id").read_text()
    assert not CHECKPOINTS.exists()
    monkeypatch.setattr(fit, "make_trainer", make)
    train(params, "convlstm")
    assert weights(CHECKPOINTS / "convlstm") == undisturbed
    assert not (RESUME / "convlstm").exists()
    losses = history_of(run, "val/loss")
    assert len(losses) == 4  # one training, one run, no epoch twice
    assert losses[1] > losses[0]  # the last epoch before the interruption was no better


def history_of(run_id: str, metric: str) -> list[float]:
    from mlflow import MlflowClient

    from fieldcast.pipeline.tracking.patience import tracking_uri

    client = MlflowClient(tracking_uri(Path()))
    assert client.get_run(run_id).info.status == "FINISHED"
    return [entry.value for entry in client.get_metric_history(run_id, metric)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "options"), [("video_transformer", {}), ("convlstm", {"output": "ensemble", "members": 3})]
)
def test_equal_seeds_give_equal_bytes_and_others_do_not(project: Path, model: str, options: dict[str, Any]) -> None:
    params = rewrite(project, {"models": {model: options}, "train": {"epochs": 1}})
    folder = CHECKPOINTS / model
    digests = []
    for _ in range(2):
        train(params, model)
        digests.append(store.directory_digest(folder))  # the card and the calibration too
    assert digests[0] == digests[1]
    first = weights(folder)
    train(rewrite(project, {"train": {"seed": 2}}), model)
    assert weights(folder) != first


class StoppedError(Exception):
    """Raised in place of a training."""


def stopped(*_: Any, **__: Any) -> None:
    raise StoppedError


def test_emulated_bfloat16_is_announced(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Trainer, "fit", stopped)
    params = rewrite(project, {"train": {"precision": "bf16-mixed"}})
    for has in (False, True):
        monkeypatch.setattr(fit, "has_bfloat16", lambda has=has: has)
        with pytest.raises(StoppedError):
            train(params, "video_transformer")
        assert ("train.precision bf16-mixed: this processor has no bfloat16" in capsys.readouterr().err) == (not has)


def test_precision_auto_is_bfloat16_where_the_hardware_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for has, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(fit, "has_bfloat16", lambda has=has: has)
        assert fit.resolve_precision(config.Train(epochs=1, precision="auto")) == expected
        assert fit.resolve_precision(config.Train(epochs=1, precision="64-true")) == "64-true"


@pytest.mark.slow
def test_training_in_bfloat16(project: Path) -> None:
    train(rewrite(project, {"train": {"precision": "bf16-mixed", "epochs": 1}}), "video_transformer")
    parameters = load(CHECKPOINTS / "video_transformer").network.parameters()
    assert all(bool(torch.isfinite(parameter).all()) for parameter in parameters)


@pytest.mark.slow
def test_minutes_end_the_training_with_the_schedule_finished(project: Path) -> None:
    params = rewrite(project, {"train": {"epochs": 100_000, "max_minutes": 0.05, "patience": 100_000}})
    rates: list[float] = []

    class Rates(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    make = fit.make_trainer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            fit, "make_trainer", lambda options, callbacks, logger: make(options, [*callbacks, Rates()], logger)
        )
        train(params, "convlstm")
    assert max(rates) > 0.5 * params.train.learning_rate
    assert rates[-1] < 0.1 * params.train.learning_rate


COMPILED = """
import torch
from fieldcast.pipeline import check, config
from fieldcast.pipeline.train import train

compile_in_place = torch.nn.Module.compile

def traced(model, *, mode):
    print("compiled with", mode)
    compile_in_place(model, backend="eager")  # traces as any backend does, and rounds as without

torch.nn.Module.compile = traced
train(config.read(), "convlstm")
"""


@pytest.mark.slow
def test_compiled_training_is_the_same_training(project: Path) -> None:
    """In a process of its own, since calls whose shapes are checked cannot be traced."""
    train(rewrite(project, {"train": {"epochs": 1}}), "convlstm")
    plain, macs = weights(CHECKPOINTS / "convlstm"), costs.read(Path("data/costs/training/convlstm.json")).macs
    rewrite(project, {"train": {"compile": "reduce-overhead"}})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", COMPILED]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compiled with reduce-overhead") == 1
    assert weights(CHECKPOINTS / "convlstm") == plain
    assert costs.read(Path("data/costs/training/convlstm.json")).macs == macs


def test_a_name_trains_the_cell_of_its_options(project: Path) -> None:
    """No later option may turn a ConvLSTM into something else."""
    changes = {"models": {"other": {"kind": "recurrent", "cell": "convgru", "hidden": [8]}}}
    params = rewrite(project, changes)
    for name, cell in (("convlstm", ConvLSTMCell), ("other", ConvGRUCell)):
        network = build_network(describe(params, name, "0" * 32), np.zeros((1, 1, 1, 1)), np.ones(1))
        assert {type(of_level) for of_level in [*network.model.encoder, *network.model.forecaster]} == {cell}


@pytest.mark.slow
def test_inputs_of_time_and_place_are_trained(project: Path) -> None:
    params = rewrite(project, {"sample": {"calendar": True, "coordinates": True}, "train": {"epochs": 1}})
    train(params, "convlstm")
    loaded = load(CHECKPOINTS / "convlstm")
    assert (loaded.config.calendar, loaded.config.coordinates) == (True, True)
    assert loaded.config.sizes.channels_in == 7
    init_times = read_init_times(PREPARED / "init_times.csv", "test")[:3]
    forecast(CHECKPOINTS / "convlstm", OBSERVATIONS, init_times, Path("placed.zarr"), params.forecast)
    assert np.isfinite(store.open_forecasts(Path("placed.zarr"))["rain_rate"].values).all()


def test_balanced_without_rain_is_refused(project: Path) -> None:
    params = rewrite(project, {"train": {"loss": "balanced"}})
    described = describe(params, "convlstm", "0" * 32)
    kelvin = replace(described, channels=(replace(described.channels[0], units="K"),))
    with pytest.raises(InputError, match="balanced weighs rain rates"):
        fit.fit(params, kelvin, None, {}, RESUME, None)


def test_weights_of_cells_follow_the_physical_target(project: Path) -> None:
    params = rewrite(project, {"train": {"loss": "balanced", "lead_weights": "linear", "last_lead_weight": 3}})
    described = describe(params, "convlstm", "0" * 32)
    channels = tuple(replace(described.channels[0], units=units) for units in ("mm h-1", "K"))
    described = replace(described, channels=channels, targets=2)
    network = build_network(described, np.zeros((1, 2, 1, 1)), np.full(2, 0.7))
    observed = torch.full((2, 4, 2, 5, 7), 12.0)
    weighted = ForecastModule(network, params.train, Budget(None))._weights(observed).expand_as(observed)
    assert weighted[0, :, 0, 0, 0].tolist() == pytest.approx([5, 25 / 3, 35 / 3, 15])  # rain: 10, leads 1 to 3
    assert weighted[0, :, 1, 0, 0].tolist() == pytest.approx([0.5, 5 / 6, 7 / 6, 1.5])  # kelvin have no bins
    network.output = "quantiles"
    of_members = ForecastModule(network, params.train, Budget(None))._weights(observed)
    assert of_members.flatten().tolist() == pytest.approx([0.5, 5 / 6, 7 / 6, 1.5])  # their loss is the CRPS


@pytest.mark.slow
def test_missing_cells_reach_no_weight(project: Path) -> None:
    """Values of cells outside the radars' range are NaN in history and target: no gradient may be NaN."""
    params = rewrite(project, {})
    description = describe(params, "convlstm", "0" * 32)
    samples = fit.Samples(params, description)
    network = build_network(description, np.zeros((1, 1, 1, 1)), np.ones(1))
    module = ForecastModule(network, params.train, Budget(None))
    batch = next(iter(samples.train_dataloader()))
    for key in ("history", "target"):
        batch[key][..., :7] = math.nan
    module._loss(batch).backward()
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_fingerprint_starts_afresh_when_anything_changes(project: Path) -> None:
    params = rewrite(project, {})
    folder = RESUME / "convlstm"
    first = fingerprint_of(params, "convlstm", "a")
    prepare_resume(folder, first)
    (folder / "last.ckpt").write_text("old")
    assert fingerprint_of(params, "convlstm", "a") == first
    prepare_resume(folder, first)
    assert (folder / "last.ckpt").exists()
    changed = fingerprint_of(rewrite(project, {"train": {"learning_rate": 0.5}}), "convlstm", "a")
    assert changed != first
    prepare_resume(folder, changed)
    assert not (folder / "last.ckpt").exists()
    assert fingerprint_of(params, "convlstm", "b") != first  # other data
    assert code_digest(["models/recurrent"]) != code_digest(["models/video_transformer"])


def test_a_training_runs_through_the_code_of_its_base(project: Path) -> None:
    params = rewrite(project, {"models": {"unet": {"kind": "unet", "base": "advection"}, "p": {"kind": "persistence"}}})
    assert code_of(params.models["unet"])[-2:] == ["models/unet", "models/advection"]
    assert code_of(params.models["p"])[-1] == "models/persistence"
    check.main()
    digest = code_digest(["models/advection"])
    assert (CHECKED / "bases" / "unet").read_text() == f"advection {digest}\n"
    assert (CHECKED / "bases" / "p").read_text() == "none\n"
    (CHECKED / "bases" / "gone").write_text("none\n")
    check.main()
    assert {path.name for path in (CHECKED / "bases").iterdir()} == set(params.models)


def test_auto_takes_the_best_reference_of_each_lead(project: Path) -> None:
    """Errors of two references that cross: at the first lead one is better, at the last the other."""
    params = rewrite(project, {"models": {"unet": {"kind": "unet", "channels": 4, "levels": 1, "base": "auto"}}})
    description = describe(params, "unet", "0" * 32)
    base = fit_base(params, description)
    assert len(base.kinds) == description.horizon
    assert {name.split(".")[0] for name in base.arrays} <= set(base.kinds)
    errors = {}
    init_times = read_init_times(PREPARED / "init_times.csv", "validation")
    for kind in BASES:
        one = rewrite(project, {"models": {"m": {"kind": kind}}})
        train(one, "m")
        arrays = dict(load(CHECKPOINTS / "m").arrays)
        errors[kind] = squared_errors(params, describe(one, "m", "0" * 32), arrays, init_times)
    for lead, chosen in enumerate(base.kinds):
        for kind in BASES:
            assert mean_log_ratio(errors[chosen], errors[kind])[lead] <= 1e-6
    train(params, "unet")
    made = load(CHECKPOINTS / "unet")
    assert made.config.bases == base.kinds
    assert "base at each lead" in (CHECKPOINTS / "unet" / "card.md").read_text()


def test_base_of_a_training_sample_is_fitted_without_its_part_of_the_period(project: Path) -> None:
    """A regression with many weights fits its own training period: a network would see errors that are too small."""
    params = rewrite(project, {"models": {"unet": {"kind": "unet", "channels": 4, "levels": 1, "base": "linear"}}})
    description = describe(params, "unet", "0" * 32)
    base = fit_base(params, description)
    network = build_network(description, *fit.statistics(description, read_climatology(PREPARED)), base.arrays)
    samples = fit.Samples(params, description, network.guide, base.parts)
    init_times = samples.training.init_times
    for part in np.array_split(np.arange(len(init_times)), 5):
        rest = np.delete(init_times, part)
        arrays = fit_kind(params, description, "linear", LinearOptions(), rest).arrays
        for index in (part[0], part[-1]):
            sample = samples.training[(int(index), 0)]
            expected = linear_forecast(description, sample["history"], init_times[index : index + 1], arrays)
            np.testing.assert_allclose(sample["base"].numpy(), expected, rtol=1e-5, atol=1e-6)
    whole = {name.removeprefix("linear."): array for name, array in base.arrays.items()}
    validation = samples.validation[(0, 0)]
    expected = linear_forecast(description, validation["history"], samples.validation.init_times[:1], whole)
    np.testing.assert_allclose(validation["base"].numpy(), expected, rtol=1e-5, atol=1e-6)


def linear_forecast(
    description: CheckpointConfig, history: Tensor, init_time: np.ndarray, arrays: dict[str, np.ndarray]
) -> np.ndarray:
    step = from_minutes(description.step_minutes)
    case = Case(init_time, description.horizon, step, 1.0, LinearOptions(), arrays)
    return linear.members(history.numpy()[:, :, : description.targets], case)[:, 0]


@pytest.mark.parametrize("kind", ["lagrangian_regression", "damped_persistence"])
def test_base_with_few_weights_is_fitted_once(project: Path, kind: str) -> None:
    params = rewrite(project, {"models": {"unet": {"kind": "unet", "channels": 4, "levels": 1, "base": kind}}})
    assert fit_base(params, describe(params, "unet", "0" * 32)).parts == ()


def test_damping_by_hand(project: Path) -> None:
    params = rewrite(project, {})
    description = describe(params, "damped_persistence", "0" * 32)
    samples = fit.Samples(params, description)
    batch = samples.training.__getitems__([(i, 0) for i in range(len(samples.training))])
    with xr.open_dataset(PREPARED / "climatology.nc") as dataset:
        mean = dataset["rain_rate"].values[0]
    anomaly = batch["history"][:, -1, 0].numpy().astype(float) - mean
    expected = [
        (anomaly * (batch["target"][:, k, 0].numpy() - mean)).sum() / (anomaly**2).sum()
        for k in range(params.sample.horizon)
    ]
    fitted = fit_kind(params, description, description.kind, DampedPersistenceOptions())
    np.testing.assert_allclose(fitted.arrays["damping"][:, 0], expected, rtol=1e-4)


def test_hours_never_seen_in_training_take_the_mean_of_the_others() -> None:
    fields = np.full((4, 1, 2, 3), np.nan)
    fields[0, 0] = [[1, 2, 3], [4, 5, np.nan]]
    fields[2, 0] = [[3, 4, 5], [6, 7, np.nan]]
    filled = complete(fields)
    np.testing.assert_array_equal(filled[1, 0], [[2, 3, 4], [5, 6, 4]])
    np.testing.assert_array_equal(filled[2, 0], [[3, 4, 5], [6, 7, 5]])


def test_cells_never_seen_in_training_take_the_field_mean() -> None:
    climatology = np.array([[[[1.0, np.nan], [3.0, 5.0]]]])
    np.testing.assert_array_equal(complete(climatology), [[[[1, 3], [3, 5]]]])


@pytest.mark.parametrize("model", ["persistence", "climatology", "damped_persistence", "advection", "linear"])
def test_references_are_checkpoints_with_a_run(project: Path, model: str) -> None:
    params = rewrite(project, {"models": {"linear": {"kind": "linear"}}})
    train(params, model)
    loaded = load(CHECKPOINTS / model)
    assert loaded.config.model == model
    assert sorted(loaded.arrays) == {
        "climatology": ["climatology"],
        "damped_persistence": ["climatology", "damping"],
        "linear": ["climatology", "coefficients", "damping", "eofs", "weights"],
    }.get(model, [])
    assert loaded.config.data_digest == read_digest(PREPARED)
    assert json.loads((CHECKPOINTS / model / "config.json").read_text())["step_minutes"] == 5
    statistics = Statistics.read(PREPARED)
    assert loaded.config.signature == statistics.signature
    assert loaded.config.channels == statistics.channels
    assert "24 x 24 cells" in (CHECKPOINTS / model / "card.md").read_text()


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),  # Lightning's own processes on one node
        ({"NODE_RANK": "1"}, False),  # started by hand, one command a node
        ({"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}, True),  # torchrun
        ({"RANK": "2", "LOCAL_RANK": "0", "GROUP_RANK": "1"}, False),
        ({"SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, True),
        ({"SLURM_PROCID": "4", "SLURM_LOCALID": "0"}, False),
    ],
)
def test_one_of_several_processes_keeps_the_records(environment: dict[str, str], first: bool) -> None:
    assert is_first_process(environment) == first


def test_other_processes_wait_for_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "resume"
    prepare_resume(folder, "of an older training")
    later = threading.Timer(0.3, prepare_resume, [folder, "new"])
    later.start()
    await_resume(folder, "new")
    assert holds(folder, "new")
    later.join()
    with pytest.raises(InputError, match=r"within 0.1 s; processes on several nodes need one project folder"):
        await_resume(folder, "another", seconds=0.1)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("localhost", 0))
        port: int = listening.getsockname()[1]
        return port


@pytest.mark.slow
@pytest.mark.parametrize("where", cases(["two devices", "two nodes"], ["two devices"]))
def test_two_processes_train_one_model(project: Path, where: str) -> None:
    """Two devices of a node by one command; two nodes by a command each."""
    devices = 2 if where == "two devices" else 1
    nodes = [{}] if where == "two devices" else [{"NODE_RANK": "0"}, {"NODE_RANK": "1"}]
    rewrite(
        project,
        {"train": {"devices": devices, "num_nodes": len(nodes), "strategy": "ddp", "accelerator": "cpu"}},
    )
    command = [sys.executable, "-m", "fieldcast.pipeline.train", "--model", "convlstm"]
    meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port())}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            command, cwd=project, env={**environment, **meeting, **node}, stderr=subprocess.PIPE, text=True
        )
        for node in nodes
    ]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0] * len(nodes), said
    assert "epoch 2 of 2, step 6," in said[0]  # 42 samples, 8 a process and step: 3 steps an epoch
    assert load(CHECKPOINTS / "convlstm").network is not None

    from mlflow import MlflowClient

    from fieldcast.pipeline.tracking.patience import tracking_uri

    client = MlflowClient(tracking_uri(Path()))
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])  # one training, one run
    assert run.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("recurrent", "quantiles"),
        ("recurrent", "ensemble"),
        ("video_transformer", "quantiles"),
        ("video_transformer", "ensemble"),
    ],
)
def test_members_are_trained_calibrated_and_forecast(project: Path, kind: str, output: str) -> None:
    name = f"{kind}_members"
    size = {"hidden": [8]} if kind == "recurrent" else {"dim": 16, "heads": 2, "channels": 4}
    options = {"kind": kind, "output": output, "members": 3, "patch": 4, **size}
    params = rewrite(project, {"models": {name: options}, "train": {"epochs": 1}})
    train(params, name)
    loaded = load(CHECKPOINTS / name)
    assert loaded.config.members == 3
    assert loaded.calibration is not None
    assert loaded.calibration.offsets.shape == (4, 1, 4, 3)
    assert np.isfinite(loaded.calibration.offsets).all()
    assert "calibrated on | " in (CHECKPOINTS / name / "card.md").read_text()
    check_forecasts_with_members(params, name, loaded, output)


def test_quantiles_of_a_reference_are_those_of_its_residuals(project: Path) -> None:
    options = {"kind": "linear", "output": "quantiles", "members": 3}
    params = rewrite(project, {"models": {"linear": options}})
    train(params, "linear")
    check_forecasts_with_members(params, "linear", load(CHECKPOINTS / "linear"), "quantiles")


@pytest.mark.slow
def test_steps_is_calibrated_and_forecast(project: Path) -> None:
    params = rewrite(project, {"models": {"steps": {"kind": "steps", "members": 3, "frames": 3}}})
    train(params, "steps")
    check_forecasts_with_members(params, "steps", load(CHECKPOINTS / "steps"), "ensemble")


def check_forecasts_with_members(params: config.Params, name: str, forecaster: Forecaster, members_are: str) -> None:
    init_times = read_init_times(PREPARED / "init_times.csv", "test")[:3]
    forecast(CHECKPOINTS / name, OBSERVATIONS, init_times, Path("members.zarr"), params.forecast, "synchronous")
    written = store.open_forecasts(Path("members.zarr"))
    assert written.attrs["members"] == members_are
    assert written.sizes["member"] == 3
    fields = written["rain_rate"].values
    assert np.isfinite(fields).all()
    assert (fields >= 0).all()
    assert (fields.std(axis=2) > 0).any()
    if members_are == "quantiles":
        assert (np.diff(fields, axis=2) >= 0).all()
    observed = store.open_observations(OBSERVATIONS)["rain_rate"]
    steps = np.array([-10, -5, 0], dtype="timedelta64[m]")
    history = np.stack([observed.sel(time=time + steps).values for time in init_times[1:2]])[:, :, None]
    issued = forecaster(history, init_times[1:2])
    np.testing.assert_array_equal(issued[0, :, 0], fields[1].mean(axis=1))


def test_each_init_time_counts_alike_against_the_base() -> None:
    errors, others = np.array([[100.0, 1], [1, 1], [1, 0], [1, 4]]), np.array([[50.0, 1], [2, 2], [2, 0], [2, 0]])
    expected = [(np.log(2) - 3 * np.log(2)) / 4, -np.log(2) / 2]  # the sums of the first lead are 103 against 56
    np.testing.assert_allclose(mean_log_ratio(errors, others), expected)
    assert mean_log_ratio(np.zeros((3, 2)), np.zeros((3, 2))).tolist() == [0, 0]


def test_a_network_that_errs_more_keeps_its_base(project: Path) -> None:
    options = {"kind": "unet", "channels": 4, "levels": 1, "frame": "moving", "base": "advection"}
    params = rewrite(project, {"models": {"unet": options}})
    description = describe(params, "unet", "0" * 32 + ".dir")
    network = build_network(description, np.full((1, 1, 1, 1), 0.2), np.array([0.5]))
    torch.manual_seed(0)
    with torch.no_grad():
        network.model.readout.bias += 3.0  # it rains everywhere
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    worse = with_share(params, description, Fitted(arrays, {}))
    assert worse.arrays["share"].tolist() == [0.0] * params.sample.horizon
    assert worse.facts["leads that keep the base"].endswith(" minutes")
    name = "model.readout.bias"  # as untrained: no better and no worse
    same = with_share(params, description, Fitted({**arrays, name: np.zeros_like(arrays[name])}, {}))
    assert same.arrays["share"].tolist() == [1.0] * params.sample.horizon
    assert same.facts["leads that keep the base"] == "none"
