"""Secrets planted in parameters, environment and addresses: no artefact, record, log or message holds them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from fieldcast.pipeline import check, compare, config, forecast, train, verify
from tests.conftest import ROOT, rewrite

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

PLANTED = "PLANTED"
OPTIONS = {"key": f"{PLANTED}-key", "client_kwargs": {"password": f"{PLANTED}-password"}}
ADDRESS = f"https://anna:{PLANTED}-pass@127.0.0.1:9/{{}}?signature={PLANTED}-sig"
OWN = ("params.yaml", "dvc.lock")  # where a user and DVC wrote them


def places_with_secrets(folder: Path) -> list[str]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.relative_to(folder).as_posix() not in OWN]
    assert len(files) > 20
    return [str(path) for path in files if PLANTED.encode() in path.read_bytes() or PLANTED in path.name]


def test_a_comparison_and_its_records_hold_no_secret(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    live = {"kind": "gridded", "path": ADDRESS.format("a.nc"), "variables": ["t"], "storage_options": OPTIONS}
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["live"]["source"] = live
    content["models"] = {"persistence": {"kind": "persistence"}}
    (project / "params.yaml").write_text(yaml.safe_dump(content))
    shutil.copy(project / "params.yaml", project / "dvc.lock")
    monkeypatch.setattr(sys, "argv", ["stage"])
    check.main()
    for model in content["models"]:
        for stage in (train, forecast, verify):
            monkeypatch.setenv("DVC_STAGE", f"stage@{model}")
            stage.main()
    compare.main()
    assert "storage_options" in (project / "data/comparison/report.html").read_text()
    assert list((project / "mlartifacts").rglob("params.yaml"))
    assert places_with_secrets(project) == []
    printed = capsys.readouterr()
    assert PLANTED not in printed.out + printed.err


@pytest.mark.parametrize(
    ("command", "source"),
    [
        ("cycle", {"path": ADDRESS.format("a.nc")}),
        ("check", {"path": ADDRESS.format("a.zarr")}),
        ("check", {"path": "s3://bucket/a.nc", "storage_options": {**OPTIONS, "endpoint_url": "http://127.0.0.1:9"}}),
        ("check", {"path": "", "storage_options": OPTIONS}),
        ("check", {"path": "nothing.nc", "storage_options": PLANTED}),
    ],
)
def test_messages_hold_no_secret(
    tmp_path: Path, small: dict[str, Any], source: dict[str, Any], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"kind": "gridded", "variables": ["t"], **source}
    content = {**small, "source": options, "live": {"model": "champion", "source": options}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": f"http://anna:{PLANTED}-tracker@127.0.0.1:9",
        "AWS_SECRET_ACCESS_KEY": f"{PLANTED}-aws",
        "AWS_MAX_ATTEMPTS": "1",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "DO_NOT_TRACK": "true",
    }
    code = "from fieldcast.pipeline.cli.main import main; main()"
    process = subprocess.run(
        [sys.executable, "-c", code, command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert process.returncode in (2, 75), process.stderr
    assert process.stderr.startswith("fieldcast: ")
    assert PLANTED not in process.stdout + process.stderr
    assert "Traceback" not in process.stderr


def test_a_silent_tracker_is_named_without_its_password(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://anna:{PLANTED}-tracker@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", f"{PLANTED}-token")
    from fieldcast.pipeline.tracking import runs

    params = rewrite(project, {})
    run = runs.open_run(params.track.experiment, "persistence", "digest", "train")
    run.metrics({"a": 1.0}, 0)
    assert "MLflow" in caplog.text
    assert PLANTED not in caplog.text
    assert config.PARAMS.exists()
    assert places_with_secrets(project) == []
