"""Trainings that end early, or in another precision: nothing is lost, and nothing wrong is kept."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fieldcast.pipeline.datasets.paths import CHECKPOINTS, RESUME
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.forecaster import load
from fieldcast.pipeline.train import train
from fieldcast.pipeline.training import checkpoint_files, fit
from tests.checkpoints import untrained
from tests.conftest import rewrite

WAIT = 120  # seconds


def status_of(run_id: str) -> str:
    from mlflow import MlflowClient

    from fieldcast.pipeline.tracking.patience import tracking_uri

    return str(MlflowClient(tracking_uri(Path())).get_run(run_id).info.status)


def test_sigterm_ends_a_training_as_killed_and_the_next_one_goes_on(project: Path) -> None:
    rewrite(project, {"train": {"epochs": 400, "patience": 400}})
    last = RESUME / "convlstm" / "last.ckpt"
    command = [sys.executable, "-m", "fieldcast.pipeline.train", "--model", "convlstm"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    started = time.monotonic()
    while not last.exists():
        assert process.poll() is None
        assert time.monotonic() - started < WAIT
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=WAIT)[1]
    assert process.returncode == 143, said
    assert "Traceback" not in said
    run = (RESUME / "convlstm" / "run_id").read_text()
    assert status_of(run) == "KILLED"
    done = checkpoint_files.read(last)["epoch"]
    assert checkpoint_files.newest(RESUME / "convlstm") == last
    assert done < 399
    assert not CHECKPOINTS.exists()


@pytest.mark.parametrize("precision", ["64-true", "bf16-true"])
def test_every_precision_ends_in_a_checkpoint(project: Path, precision: str) -> None:
    params = rewrite(project, {"train": {"epochs": 1, "precision": precision}})
    train(params, "convlstm")
    assert load(CHECKPOINTS / "convlstm").network is not None


def test_a_count_that_fails_costs_no_training(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> int:
        raise RuntimeError("no such operator")

    monkeypatch.setattr(fit, "count_macs", fails)
    train(rewrite(project, {"train": {"epochs": 1}}), "convlstm")
    assert (CHECKPOINTS / "convlstm").is_dir()


def test_a_diverged_training_keeps_nothing(project: Path) -> None:
    params = rewrite(project, {"train": {"epochs": 3}})
    steep = params.train.model_copy(update={"learning_rate": 1e25, "gradient_clip": 1e30})
    params = params.model_copy(update={"train": steep})
    with pytest.raises(InputError, match=r"training of convlstm diverged: .* lower train\.learning_rate"):
        train(params, "convlstm")
    assert not CHECKPOINTS.exists()
    assert status_of((RESUME / "convlstm" / "run_id").read_text()) == "FAILED"


def test_no_weight_is_written_that_is_not_finite(project: Path) -> None:
    stored = checkpoint.read_checkpoint(untrained(project, "simvp"))
    name = next(name for name, array in stored.arrays.items() if array.ndim == 4)
    for value in (np.nan, np.inf):
        arrays = {**stored.arrays, name: np.full_like(stored.arrays[name], value)}
        with pytest.raises(InputError, match="expected finite numbers: nothing is written"):
            checkpoint.save_checkpoint(project / "new", stored.config, arrays, "")
    assert not (project / "new").exists()


def test_a_cut_file_is_passed_over_for_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, last, before = checkpoint_files.CheckpointFiles(), tmp_path / "last.ckpt", tmp_path / "before.ckpt"
    assert checkpoint_files.newest(tmp_path) is None
    for epoch in range(3):
        files.save_checkpoint({"epoch": epoch, "weights": torch.arange(99)}, last)
    assert [files.load_checkpoint(path)["epoch"] for path in (last, before)] == [2, 1]
    last.write_bytes(last.read_bytes()[:-200])
    assert checkpoint_files.newest(tmp_path) == before
    assert "last.ckpt: its bytes are not those" in capsys.readouterr().err
    with pytest.raises(DamagedError):
        files.load_checkpoint(last)
    before.write_bytes(b"")
    assert checkpoint_files.newest(tmp_path) is None


def test_a_full_disk_leaves_the_newest_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, last = checkpoint_files.CheckpointFiles(), tmp_path / "last.ckpt"
    files.save_checkpoint({"epoch": 0}, last)

    def full(path: Path, content: bytes) -> None:
        path.write_bytes(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_files, "write_durable", full)
    with pytest.raises(OSError, match="No space left"):
        files.save_checkpoint({"epoch": 1}, last)
    assert files.load_checkpoint(last)["epoch"] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_training_goes_on_where_its_newest_file_is_cut(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = rewrite(project, {"train": {"epochs": 4}})
    train(params, "convlstm")
    undisturbed = (CHECKPOINTS / "convlstm" / "model.safetensors").read_bytes()
    make = fit.make_trainer

    class Stop(fit.Callback):
        def on_train_epoch_start(self, trainer, pl_module) -> None:  # type: ignore[no-untyped-def]
            if trainer.current_epoch == 3:
                raise RuntimeError("interrupted")

    monkeypatch.setattr(
        fit, "make_trainer", lambda options, callbacks, logger: make(options, [*callbacks, Stop()], logger)
    )
    with pytest.raises(RuntimeError, match="interrupted"):
        train(params, "convlstm")
    monkeypatch.setattr(fit, "make_trainer", make)
    last = RESUME / "convlstm" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    train(params, "convlstm")
    assert (CHECKPOINTS / "convlstm" / "model.safetensors").read_bytes() == undisturbed
