import numpy as np
import pytest

from fieldcast.pipeline.evaluation.comparability import incomparable
from tests.made_sums import made_sums

BUDGET = {"epochs": 5, "max_minutes": None, "training samples": 1234, "batch_size": 8}


def errors(n=20, leads=3):
    return np.random.default_rng(0).normal(0, 1, (n, leads, 4))


@pytest.fixture
def sums():
    return {name: made_sums(errors(), thresholds=(1.0,)) for name in ("persistence", "convlstm", "video_transformer")}


@pytest.fixture
def budgets():
    return {"persistence": None, "convlstm": BUDGET, "video_transformer": dict(BUDGET)}


def test_equal_terms_have_no_reasons(sums, budgets):
    assert incomparable(sums, budgets) == {}
    assert incomparable({}, {}) == {}


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (made_sums(errors(19), thresholds=(1.0,)), "19 init times instead of 20 (persistence)"),
        (made_sums(errors(), thresholds=(1.0,), every=np.timedelta64(6, "m")), "other init times than persistence"),
        (made_sums(errors(leads=2), thresholds=(1.0,)), "2 lead times instead of 3 (persistence)"),
        (made_sums(errors(), thresholds=(2.0,)), "other thresholds than persistence"),
        (made_sums(errors(), thresholds=(1.0, 2.0)), "2 thresholds instead of 1 (persistence)"),
        (made_sums(errors(), thresholds=(1.0,), field="snow"), "scored for snow instead of rain (persistence)"),
        (made_sums(errors()[..., :3], thresholds=(1.0,)), "scored on other cells than persistence"),
    ],
)
def test_other_terms_are_named(sums, budgets, other, reason):
    assert incomparable(sums | {"convlstm": other}, budgets) == {"convlstm": [reason]}


def test_equal_numbers_of_other_cells_are_seen(sums, budgets):
    other = sums["convlstm"].copy(deep=True)
    other["rain.valid_crc"][4, 1] += 1
    assert incomparable(sums | {"convlstm": other}, budgets) == {"convlstm": ["scored on other cells than persistence"]}


def test_the_majority_is_the_standard_even_if_it_comes_later(sums, budgets):
    found = incomparable({"persistence": made_sums(errors(10), thresholds=(1.0,))} | {
        name: sums[name] for name in ("convlstm", "video_transformer")
    }, budgets)  # fmt: skip
    assert found == {"persistence": ["10 init times instead of 20 (convlstm)"]}


def test_a_tie_goes_to_the_first_model(sums, budgets):
    two = {"persistence": sums["persistence"], "convlstm": made_sums(errors(10), thresholds=(1.0,))}
    assert incomparable(two, budgets) == {"convlstm": ["10 init times instead of 20 (persistence)"]}


def test_another_budget_is_named_for_learned_models_alone(sums, budgets):
    more = budgets | {"video_transformer": BUDGET | {"epochs": 9, "max_minutes": 3.0}}
    assert incomparable(sums, more) == {
        "video_transformer": [
            "trained with epochs 9 instead of 5 (convlstm)",
            "trained with max minutes 3.0 instead of without limit (convlstm)",
        ]
    }
    assert incomparable(sums, budgets | {"convlstm": None}) == {}


def test_the_usual_budget_is_that_of_most_learned_models(sums, budgets):
    names = ("first", "second", "third")
    three = {name: made_sums(errors()) for name in names}
    found = incomparable(three, {"first": BUDGET | {"epochs": 1}, "second": BUDGET, "third": BUDGET})
    assert found == {"first": ["trained with epochs 1 instead of 5 (second)"]}


def test_members_make_no_model_incomparable(sums, budgets):
    """What only a model with members has, such as its rank histogram, is no other term."""
    ranks = np.ones((20, 3, 11))
    sums["convlstm"]["rain.rank_histogram"] = (("init_time", "lead_time", "rank"), ranks)
    sums["convlstm"] = sums["convlstm"].assign_coords(rank=np.arange(11))
    assert incomparable(sums, budgets) == {}
