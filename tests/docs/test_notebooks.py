"""The notebooks run from their first cell to their last, each in a project of its own."""

import json
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest

from fieldcast.pipeline import config
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, FORECASTS, OBSERVATIONS, PREPARED
from fieldcast.pipeline.forecast import forecast
from fieldcast.pipeline.train import train
from tests.conftest import ROOT

FOLDER = ROOT / "docs" / "notebooks"
MODELS = {"unet": "persistence", "advection": "climatology"}  # those of the tests in their place


def run(name: str) -> dict[str, Any]:
    """Run the code of a notebook in one namespace and return that."""
    names: dict[str, Any] = {}
    for cell in json.loads((FOLDER / name).read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)
            text = "".join(cell["source"])
            for there, here in MODELS.items():
                text = text.replace(f'"{there}"', f'"{here}"').replace(f"/{there}", f"/{here}")
            exec(compile(text, name, "exec"), names)  # noqa: S102  our own text
    return names


@pytest.fixture(autouse=True)
def _without_a_window(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(plt, "show", lambda: plt.gcf().canvas.draw())
    yield
    plt.close("all")


def test_every_notebook_is_run() -> None:
    assert {path.name for path in FOLDER.glob("*.ipynb")} == {"forecast-map.ipynb", "verification-plot.ipynb"}


def test_from_a_file_to_a_forecast_map(project: Path) -> None:
    train(config.load(), "persistence")
    names = run("forecast-map.ipynb")
    newest = names["history"]["rain_rate"].values[-1]
    for lead in range(names["leads"].size):
        np.testing.assert_array_equal(names["predicted"].values[lead], newest)  # persistence
    assert [len(row) for row in names["axes"]] == [4, 4]
    assert names["axes"][0, 1].get_title() == "+10 min"


def test_from_issued_forecasts_to_a_verification_plot(project: Path) -> None:
    params = config.load()
    init_times = read_init_times(PREPARED / "init_times.csv", "test")
    for model in ("persistence", "climatology"):
        train(params, model)
        forecast(CHECKPOINTS / model, OBSERVATIONS, init_times, FORECASTS / f"{model}.zarr", params.forecast)
    names = run("verification-plot.ipynb")
    drawn = {line.get_label(): line.get_ydata() for line in names["axes"][0].lines}
    assert set(drawn) == {"persistence", "climatology"}
    np.testing.assert_allclose(drawn["climatology"], names["scores"]["climatology"]["rmse"])
    assert names["axes"][1].get_ylabel() == "CSI of at least 1 mm h-1"
