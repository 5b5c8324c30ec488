"""Models that differ in their seed alone are trainings of one model."""

from pathlib import Path

from fieldcast.pipeline.compare import _recipe
from fieldcast.pipeline.evaluation.comparison import Entry, trainings
from fieldcast.pipeline.train import with_own_seed
from tests.conftest import rewrite
from tests.made_sums import made_sums

MODELS = {
    "a": {"kind": "unet", "channels": 4},
    "b": {"kind": "unet", "channels": 4, "seed": 2},
    "c": {"kind": "unet", "channels": 5, "seed": 3},
    "persistence": {"kind": "persistence"},
    "again": {"kind": "persistence"},
}


def test_they_are_found_by_what_they_are_made_by(project: Path) -> None:
    params = rewrite(project, {"models": MODELS})
    sums = made_sums([[[1.0]]])
    entries = {name: Entry(sums, params.models[name].kind, recipe=_recipe(params.models[name])) for name in MODELS}
    assert trainings(entries) == [["a", "b"]]


def test_a_model_has_its_own_seed(project: Path) -> None:
    params = rewrite(project, {"models": MODELS})
    assert [with_own_seed(params, name).train.seed for name in ("a", "b", "persistence")] == [params.train.seed, 2, 1]
