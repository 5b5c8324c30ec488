import pytest

from fieldcast import models
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.training import memory
from fieldcast.pipeline.training.memory import check_memory

SIZES = {"channels_in": 1, "channels_out": 1, "history": 3, "horizon": 4, "step_minutes": 5}


def options(kind, **stated):
    return models.OPTIONS[kind].model_validate(stated)


def check(kind, stated, budget_gb, batch_size=8, cells=(24, 32)):
    return check_memory("mine", kind, options(kind, **stated), SIZES, cells, batch_size, budget_gb)


def test_what_fits_is_told_apart_from_what_does_not():
    stated = {"hidden": [8], "patch": 2}
    need = check("recurrent", stated, 10.0)
    exact = need.of_batch(8) / 1e9
    assert check("recurrent", stated, exact) == need
    with pytest.raises(InputError) as caught:
        check("recurrent", stated, exact * 0.9)
    said = str(caught.value)
    assert said.startswith("params.yaml: models.mine needs ")
    assert "to train on batches of 8" in said
    assert "train.batch_size: 7" in said
    assert "patch: 4" in said
    assert "\n" not in said


def test_written_out_weights_are_refused_and_patterns_that_fit_are_named():
    """Clusters at their worst are all weights of all pairs, on a grid where windows and axes hold far less."""
    stated = {"dim": 16, "heads": 2, "patch": 2, "attention": "clustered"}
    factorised = check("video_transformer", {**stated, "attention": "factorised"}, 10.0)
    with pytest.raises(InputError, match=r"attention: factorised, or .*attention: window"):
        check("video_transformer", stated, factorised.of_batch(8) * 1.2 / 1e9)


def test_without_a_budget_what_is_free_counts(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1000)
    with pytest.raises(InputError, match=r"1e-06 GB are free; take smaller training crops"):
        check("recurrent", {"hidden": [4]}, None)


def test_free_bytes_is_what_the_machine_says():
    import psutil

    assert memory.free_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
