"""The trace of a forecast whose model has a run, a stage in dvc.lock, a commit and data: link by link."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fieldcast.pipeline import config
from fieldcast.pipeline.cli import main as cli
from fieldcast.pipeline.datasets.store import directory_digest
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.archive.ledger import LEDGER, Ledger
from fieldcast.pipeline.live.context import LiveContext
from fieldcast.pipeline.provenance.link import State
from fieldcast.pipeline.provenance.trace import trace
from fieldcast.pipeline.tracking.registry import Registry
from tests.conftest import rewrite
from tests.live.clocks import SimulatedClock
from tests.tracking.tracked import train_tracked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]
NOW = datetime(2024, 6, 1, 1, 0, tzinfo=UTC)
STAMP = "20240601T010000Z"
STORE = f"data/live/forecasts/{STAMP}.zarr"
IMAGE = f"data/live/copies/{STAMP}/rain_rate_005min.tif"
NAMES = ["file", "ledger", "model version", "checkpoint", "MLflow run", "dvc.lock", "commit", "data"]
PIPELINE = """
stages:
  ingest: {cmd: "true", outs: [data/observations.zarr]}
  prepare: {cmd: "true", deps: [data/observations.zarr], outs: [data/prepared]}
  train:
    foreach: [persistence]
    do:
      cmd: "true"
      deps: [data/prepared/learned.json, pipeline/train.py, pipeline/training, "models/${item}"]
      outs: ["data/checkpoints/${item}"]
"""
CODE = (
    "pipeline/train.py",
    "pipeline/training/fit.py",
    "pipeline/training/deep/loss.py",
    "models/persistence/forecast.py",
)


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def commit_all() -> None:
    run("git", "add", "--all", *CODE, "params.yaml", "dvc.yaml", *(["dvc.lock"] if Path("dvc.lock").exists() else []))
    run("git", "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "--quiet", "--message", "state")


@pytest.fixture(scope="module")
def issued(prepared: Path, tracker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with a forecast of persistence, whose digests DVC itself has written into dvc.lock."""
    folder = tmp_path_factory.mktemp("issued") / "project"
    shutil.copytree(prepared, folder)
    shutil.copy(tracker, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        live = {"model": "data/checkpoints/persistence", "source": None, "copies": ["netcdf", "geotiff"]}
        params = rewrite(folder, {"models": {"persistence": {"kind": "persistence"}}, "live": live})
        for name in CODE:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(f"# {name}\n")
        Path("dvc.yaml").write_text(PIPELINE)
        run("git", "init", "--quiet")
        run(sys.executable, "-m", "dvc", "init", "--quiet")
        commit_all()
        train_tracked(params, "persistence")
        run(sys.executable, "-m", "dvc", "commit", "--force", "--quiet")
        commit_all()
        outcomes = cycle.run(LiveContext(params, Path("data/live"), SimulatedClock(NOW)))
        assert [outcome.path for outcome in outcomes] == [STORE], outcomes
    return folder


@pytest.fixture
def project(issued: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the project, as working directory."""
    folder = tmp_path / "project"
    shutil.copytree(issued, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


def states(path: str) -> dict[str, str]:
    """Return the links of a file that do not hold, with what they say."""
    links = trace(Path(path), Path("data/live"), config.read(Path("params.yaml")).track.experiment)
    assert [link.name for link in links] == NAMES
    return {f"{link.name} {link.state}": link.says for link in links if link.state is not State.WHOLE}


def flip(path: Path | str, at: int | bytes) -> None:
    """Change one bit of a file, at a place or in the last occurrence of some bytes."""
    path = Path(path)
    content = bytearray(path.read_bytes())
    place = content.rindex(at) + len(at) // 2 if isinstance(at, bytes) else at % len(content)
    content[place] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


@pytest.mark.parametrize("name", [STORE, f"data/live/copies/{STAMP}.nc", IMAGE], ids=["store", "netcdf", "geotiff"])
def test_every_link_of_an_undamaged_forecast_holds(project: Path, name: str) -> None:
    assert states(name) == {}


@pytest.mark.parametrize("at", [3, 400, -1, -600, -3000])
@pytest.mark.parametrize("name", [f"data/live/copies/{STAMP}.nc", IMAGE], ids=["netcdf", "geotiff"])
def test_a_flipped_byte_of_a_copy_is_named_wherever_it_is(project: Path, name: str, at: int) -> None:
    flip(name, at)
    broken = states(name)
    assert "file broken" in broken
    assert name in broken["file broken"]
    assert not {name for name in broken if name.startswith(("checkpoint", "MLflow", "dvc", "commit", "data"))}


def test_a_flipped_byte_of_a_published_store_is_named(project: Path) -> None:
    files = sorted(path for path in Path(STORE).rglob("*") if path.is_file())
    assert len(files) > 8
    for path in files:
        whole = path.read_bytes()
        flip(path, len(whole) // 2)
        broken = states(STORE)
        assert path.as_posix() in broken["file broken"], path
        path.write_bytes(whole)


def test_a_flipped_byte_of_the_ledger_is_named(project: Path) -> None:
    with Ledger(Path("data/live") / LEDGER, read_only=True) as ledger:
        (row,) = ledger.cycles()
    flip(f"data/live/{LEDGER}", row.manifest_sha256.encode())
    assert "ledger.sqlite" in states(STORE)["ledger broken"]


def test_another_row_of_the_ledger_is_named(project: Path) -> None:
    from dataclasses import replace

    with Ledger(Path("data/live") / LEDGER) as ledger, ledger.writing():
        (row,) = ledger.cycles()
        ledger.put(replace(row, manifest_sha256="0" * 64), "forged", NOW)
    assert "in the ledger 000" in states(STORE)["ledger broken"]


def test_a_flipped_byte_of_the_checkpoint_is_named(project: Path) -> None:
    for name in ("config.json", "model.safetensors", "card.md", "manifest.json"):
        path = Path("data/checkpoints/persistence", name)
        whole = path.read_bytes()
        flip(path, len(whole) // 2)
        broken = states(STORE)
        assert name in broken["checkpoint broken"], name
        assert set(broken) == {"checkpoint broken", "data unchecked"}
        path.write_bytes(whole)


def test_a_flipped_byte_of_what_mlflow_registered_is_named(project: Path) -> None:
    (weights,) = Path("mlartifacts").rglob("artifacts/persistence/config.json")
    flip(weights, b"persistence")
    assert set(broken := states(STORE)) == {"MLflow run broken"}
    assert "has a checkpoint with digest" in broken["MLflow run broken"]


def test_a_flipped_digest_in_mlflow_is_named(project: Path) -> None:
    digest = directory_digest(Path("data/checkpoints/persistence"))
    changed = digest.replace(digest[20], "0" if digest[20] != "0" else "1")
    Path("mlflow.db").write_bytes(Path("mlflow.db").read_bytes().replace(digest.encode(), changed.encode()))
    assert "MLflow run broken" in states(STORE)


def test_a_flipped_digest_in_dvc_lock_is_named(project: Path) -> None:
    lock = Path("dvc.lock")
    digest = lock.read_text().partition("path: data/checkpoints/persistence")[2].partition("md5: ")[2][:32]
    flip(lock, digest.encode())
    broken = states(STORE)
    assert set(broken) == {"dvc.lock broken", "commit unchecked"}
    assert "dvc.lock says that train@persistence wrote data/checkpoints/persistence" in broken["dvc.lock broken"]
    lock.write_bytes(b"stages: [\xff")
    assert "dvc.lock" in states(STORE)["dvc.lock broken"]


@pytest.mark.parametrize("name", ["pipeline/train.py", "pipeline/training", "models/persistence"])
def test_code_that_is_not_that_of_the_commit_is_named(project: Path, name: str) -> None:
    text = Path("dvc.lock").read_text()
    digest = text.partition(f"path: {name}\n")[2].partition("md5: ")[2][:32]
    flip("dvc.lock", digest.encode())
    broken = states(STORE)
    assert set(broken) == {"commit broken"}
    assert f"train@persistence ran {name}" in broken["commit broken"]


def test_a_flipped_byte_of_the_data_is_named(project: Path) -> None:
    chunk = next(path for path in sorted(Path("data/observations.zarr/rain_rate/c").rglob("*")) if path.is_file())
    for path in (chunk, Path("data/prepared/learned.json"), Path("data/prepared/statistics.json")):
        whole = path.read_bytes()
        flip(path, len(whole) // 2)
        broken = states(STORE)
        assert set(broken) == {"data broken"}
        assert path.as_posix() in broken["data broken"]
        path.chmod(0o644)
        path.write_bytes(whole)


@pytest.mark.parametrize(
    ("gone", "unchecked"),
    [
        ("mlflow.db", {"MLflow run": "mlflow.db is not there", "commit": "one of them is missing"}),
        ("dvc.lock", {"dvc.lock": "cannot be read", "commit": "one of them is missing"}),
        (".git", {"commit": "no git repository"}),
        ("data/observations.zarr", {"data": "dvc checkout"}),
        ("data/checkpoints", {"checkpoint": "is not here", "data": "the checkpoint names the data"}),
        (f"data/live/{LEDGER}", {"ledger": "is not there"}),
    ],
)
def test_what_is_gone_is_said_to_be_unchecked(project: Path, gone: str, unchecked: dict[str, str]) -> None:
    (shutil.rmtree if Path(gone).is_dir() else Path.unlink)(Path(gone))
    found = states(STORE)
    assert set(found) == {f"{name} unchecked" for name in unchecked}
    assert all(words in found[f"{name} unchecked"] for name, words in unchecked.items())
    assert not (gone == "mlflow.db" and Path(gone).exists())  # a look makes none


def test_a_model_that_was_trained_again_is_found_in_the_history(project: Path) -> None:
    params = rewrite(project, {"sample": {"horizon": 5}})
    train_tracked(params, "persistence")
    run(sys.executable, "-m", "dvc", "commit", "--force", "--quiet", "train@persistence")
    commit_all()
    found = states(STORE)
    assert set(found) == {"checkpoint unchecked", "data unchecked"}
    assert "data/checkpoints/persistence is another training" in found["checkpoint unchecked"]


def test_a_version_of_the_registry_is_followed(project: Path) -> None:
    params = rewrite(project, {"live": {"model": "champion"}})
    registry = Registry(params.track.experiment)
    version = registry.version("1")
    registry.appoint(version, "champion", "a test")
    clock = SimulatedClock(NOW)
    clock.sleep(300)
    cycle.run(LiveContext(params, Path("data/live"), clock))
    later = STORE.replace("T010000Z", "T010500Z")
    assert states(later) == {}
    Path("mlflow.db").unlink()
    assert set(states(later)) == {"MLflow run unchecked", "commit unchecked"}  # the live folder knows the version


def test_other_files_are_refused(project: Path) -> None:
    Path("20240601T010000Z.png").touch()
    Path("forecast.nc").write_bytes(b"no NetCDF")
    for name, words in (
        ("nowhere.zarr", "no such file"),
        ("20240601T010000Z.png", "expected a store"),
        ("forecast.nc", "neither its attributes nor its name tell an init time"),
    ):
        with pytest.raises(InputError, match=words):
            trace(Path(name), Path("data/live"), "small")


@pytest.fixture
def fieldcast(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Return a function that runs the command and gives exit code and output."""

    def command(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["fieldcast", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().out

    return command


def test_the_command_ends_with_74_where_a_link_is_broken(
    project: Path, fieldcast: Callable[..., tuple[int, str]]
) -> None:
    code, out = fieldcast("trace", STORE)
    assert code == 0
    assert out.count("whole") == len(NAMES)
    code, out = fieldcast("trace", STORE, "--json")
    assert [link["state"] for link in json.loads(out)["links"]] == ["whole"] * len(NAMES)
    Path("mlflow.db").unlink()
    code, out = fieldcast("trace", STORE)
    assert (code, out.count("unchecked")) == (0, 2)
    flip(next(path for path in Path(STORE, "rain_rate", "c").rglob("*") if path.is_file()), 20)
    code, out = fieldcast("trace", STORE)
    assert (code, out.count("broken")) == (74, 1)
