"""What carries a recurrent network through time, compared: a run of each in one experiment, with the same metrics."""

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from fieldcast.pipeline import compare, forecast, train, verify
from fieldcast.pipeline.tracking import patience

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

TINY = {"hidden": [8], "patch": 4}
MIXERS = ("convlstm", "attention")
LEARNED = {
    **{f"by_{mixer}": ("recurrent", {**TINY, "cell": mixer}) for mixer in MIXERS},
    "by_convolution": ("simvp", {"channels": 4, "hidden": 8, "blocks": 1}),
}
COMPARED = {**LEARNED, "persistence": ("persistence", {})}


def rewrite_models(project: Path) -> None:
    content = yaml.safe_load((project / "params.yaml").read_text())
    content["models"] = {name: {"kind": kind, **options} for name, (kind, options) in COMPARED.items()}
    content["train"]["epochs"] = 1
    content["verify"] = {"thresholds": {"rain_rate": [0.5]}, "neighbourhoods_km": [2]}
    content["compare"] = {"resamples": 100}
    (project / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def scores(metrics: Mapping[str, float]) -> set[str]:
    return {key for key in metrics if key.split("/")[0] in ("lead", "lead_more", "test")}


@pytest.mark.slow
def test_all_mixers_have_the_same_metrics_in_one_experiment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite_models(project)
    for name in COMPARED:
        monkeypatch.setattr(sys, "argv", ["stage", "--model", name])
        for stage in (train, forecast, verify):
            stage.main()
    compare.main()
    client = MlflowClient(patience.tracking_uri(project))
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    runs = {run.data.tags["model"]: run.data for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == COMPARED.keys()
    assert {runs[f"by_{mixer}"].params["model.cell"] for mixer in MIXERS} == set(MIXERS)
    first = runs["by_convlstm"].metrics
    assert {"val/loss", "lead/rmse", "test/rmse", "lead/csi_0.5_mm_h", "spent/parameters", "spent/macs"} <= set(first)
    for name in LEARNED:
        assert runs[name].metrics.keys() == first.keys(), name
    assert scores(runs["persistence"].metrics) == scores(first)
