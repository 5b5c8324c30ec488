import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fieldcast.pipeline.cli.main import app
from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.frames import FrameReader
from fieldcast.pipeline.datasets.paths import OBSERVATIONS, PREPARED
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.forecasting import checkpoint
from fieldcast.pipeline.forecasting.forecaster import forecast_fields, load
from fieldcast.pipeline.training import cluster_queries as clusters
from fieldcast.pipeline.training.cluster_queries import Pair, cluster
from tests.checkpoints import untrained

TOKENS = (3 + 4) * 4 * 4  # frames of history and future, patches of 6 x 6 in 24 x 24 cells


def joint(project: Path, **options: Any) -> Path:
    return untrained(project, "video_transformer", 0.1, attention="joint", **options)


def forecast(folder: Path) -> np.ndarray:
    """Forecast a history with gaps and rain, the same for all."""
    draws = np.random.default_rng(0)
    history = np.where(draws.random((1, 3, 1, 24, 24)) < 0.1, np.nan, draws.gamma(0.3, 4, (1, 3, 1, 24, 24)))
    init_times = np.array(["2024-06-02T06:30"], dtype="datetime64[ns]")
    return forecast_fields(load(folder), history.astype(np.float32), init_times, None, 0)


@pytest.mark.parametrize("options", [{}, {"global_tokens": 2}, {"arch": "encoder_decoder"}, {"output": "quantiles"}])
def test_narrow_bins_are_exact_attention(project: Path, options: dict[str, Any]) -> None:
    folder = joint(project, **options)
    found = cluster(folder, 16, 1e-3, project / "narrow")
    assert found.clusters == 1  # each token is one
    assert found.rmse["rain_rate"].change == pytest.approx(0, abs=1e-5)
    assert found.attention_macs.change > 0  # nothing saved, and hashes to pay for
    np.testing.assert_allclose(forecast(project / "narrow"), forecast(folder), rtol=1e-3, atol=1e-4)


def test_wide_bins_are_one_cluster_and_another_forecast(project: Path) -> None:
    folder = joint(project)
    found = cluster(folder, 1, 1e4, project / "wide")
    assert found.clusters == pytest.approx(1 / TOKENS)
    assert found.attention_macs.exact == 4 * 2 * TOKENS**2 * 8
    assert found.attention_macs.clustered == 4 * (2 * TOKENS * 8 + TOKENS * 8)  # one query, and a hash of each
    assert np.abs(forecast(project / "wide") - forecast(folder)).max() > 1e-3
    rmse = found.rmse["rain_rate"]
    assert rmse.exact > 0
    assert rmse.change != 0


def test_the_new_checkpoint_says_what_it_is(project: Path) -> None:
    folder = joint(project, output="quantiles")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    found = cluster(folder, 5, 2.0, project / "like")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    description = checkpoint.read_config(project / "like")
    old = checkpoint.read_config(folder)
    assert (description.model, description.options["attention"], description.options["rounds"]) == (
        "like",
        "clustered",
        5,
    )
    assert replace(description, model=old.model, options=old.options) == old
    card = (project / "like" / "card.md").read_text()
    assert "| clusters made from | mine |" in card
    assert f"{found.rmse['rain_rate'].clustered:.6g} clustered" in card


def test_errors_and_widths_are_those_of_the_periods(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Widths come from training samples, errors from validation samples: nothing is asked of the test period."""
    asked = []
    real = clusters.read_init_times
    monkeypatch.setattr(clusters, "read_init_times", lambda path, split: asked.append(split) or real(path, split))
    found = cluster(joint(project), 4, 1.0, project / "one")
    assert asked == ["train", "validation"]
    forecaster = load(project / "mine")
    reader, squares = FrameReader(OBSERVATIONS, ["rain_rate"]), []
    times = real(PREPARED / "init_times.csv", "validation")
    for i in np.unique(np.linspace(0, len(times) - 1, 32).round().astype(int)):
        at = int(reader.positions(times[i : i + 1])[0])
        frames = reader.read(at - 2, at + 5)
        squares.append((forecaster(frames[None, :3], times[i : i + 1])[0] - frames[3:]) ** 2)
    assert found.rmse["rain_rate"].exact == pytest.approx(float(np.sqrt(np.nanmean(squares))), rel=1e-5)
    widths = [float(layer.width) for layer in found.forecaster.network.modules() if hasattr(layer, "calibrate")]  # type: ignore[union-attr]
    assert len(widths) == 4
    assert len(set(widths)) == 4  # each layer has queries of its own


def test_the_command_prints_what_changes(project: Path) -> None:
    folder = joint(project)
    result = CliRunner().invoke(app, ["cluster", str(folder), "--rounds", "1", "--ratio", "10000"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["exact", "clustered", "change"]
    assert lines[1].startswith("RMSE of rain_rate [mm/h]")
    attention = next(line for line in lines if line.startswith("attention"))
    assert attention.endswith("-98.66%")  # 1 - (2 + 1) / (2 * 112)
    assert lines[-2] == "clusters: 1% of the tokens"
    assert lines[-1] == f"Checkpoint: {folder}_clustered"
    assert checkpoint.read_config(Path(f"{folder}_clustered")).options["attention"] == "clustered"


def test_what_cannot_be_clustered_is_refused_and_nothing_is_lost(project: Path) -> None:
    there = project / "there"
    there.mkdir()
    (there / "kept").write_text("mine")
    with pytest.raises(InputError, match="there, which exists: choose another"):
        cluster(joint(project), 4, 1.0, there)
    assert (there / "kept").read_text() == "mine"
    new = project / "new"
    with pytest.raises(InputError, match="--ratio is 0, expected more than 0"):
        cluster(joint(project), 4, 0.0, new)
    with pytest.raises(InputError, match="--ratio is nan"):
        cluster(joint(project), 4, float("nan"), new)
    with pytest.raises(InputError, match=r"config\.json: attention is divided, expected joint"):
        cluster(untrained(project, "video_transformer", attention="divided"), 4, 1.0, new)
    with pytest.raises(InputError, match=r"config\.json: attention is simvp, expected joint"):
        cluster(untrained(project, "simvp"), 4, 1.0, new)
    turned = {"positions": "rotary3d", "dim": 16}
    with pytest.raises(InputError, match="clusters do not go with its other options: positions: rotary3d"):
        cluster(joint(project, **turned), 4, 1.0, new)
    folder = joint(project)
    content = json.loads((folder / "config.json").read_text())
    content["signature"]["units"] = {"rain_rate": "mm"}
    (folder / "config.json").write_text(json.dumps(content))
    manifest.write(folder)
    with pytest.raises(InputError, match="as mine was trained"):
        cluster(folder, 4, 1.0, new)
    assert not new.exists()


def test_queries_that_are_all_alike_are_named(project: Path) -> None:
    folder = joint(project, positions="none")
    network = load(folder).network
    assert network is not None
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("query.weight"):
                parameter.zero_()
    arrays = {name: value.numpy() for name, value in network.state_dict().items()}
    checkpoint.save_checkpoint(folder, checkpoint.read_config(folder), arrays, "")
    with pytest.raises(InputError, match="all queries are the same"):
        cluster(folder, 4, 1.0, project / "new")


def test_a_change_from_nothing_is_none() -> None:
    assert Pair(0.0, 0.0).change == 0
    assert Pair(2.0, 1.0).change == -0.5
