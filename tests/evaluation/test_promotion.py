import numpy as np
import pytest

from fieldcast.pipeline.config import Compare, Promotion
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.promotion import decide, guard_fault
from fieldcast.pipeline.verification.scores import Score
from tests.made_sums import made_sums

FEW = Compare(resamples=200)
REFERENCES = ["persistence", "advection"]
SIZES = {"persistence": 2.0, "advection": 1.5, "convlstm": 1.0, "video_transformer": 1.2}


def made(sizes, offset=0.0):
    """Return sums of models with independent errors of the given sizes; 64 init times, three leads."""
    rng = np.random.default_rng(3)
    return {name: made_sums(offset + rng.normal(0, size, (64, 3, 9))) for name, size in sizes.items()}


def test_without_a_champion_the_best_model_has_to_beat_the_best_reference():
    found = decide(made(SIZES), Promotion(), FEW, REFERENCES)
    assert (found.candidate, found.incumbent, found.promote, found.champion) == (
        "convlstm",
        "advection",
        True,
        "convlstm",
    )
    assert found.reason.startswith("rmse of convlstm over 5 to 15 minutes is 3")
    assert found.reason.endswith(" %), guards hold")
    assert "lower than that of advection (95 % interval " in found.reason
    assert [difference.model for difference in found.differences] == ["convlstm", "video_transformer", "persistence"]
    assert {difference.other for difference in found.differences} == {"advection"}


def test_the_percentages_are_those_of_the_pooled_scores():
    sums = made(SIZES)
    found = decide(sums, Promotion(leads_minutes=[10, 15]), FEW, REFERENCES)
    squares = {name: float(own["rain.squared_error"][:, 1:].sum()) for name, own in sums.items()}
    lower = 100 * (1 - (squares["convlstm"] / squares["advection"]) ** 0.5)
    assert f"rmse of convlstm over 10 to 15 minutes is {lower:.1f} % lower" in found.reason


def test_without_a_champion_and_a_better_model_the_best_reference_takes_office():
    found = decide(made(SIZES | {"convlstm": 1.49, "video_transformer": 1.8}), Promotion(), FEW, REFERENCES)
    assert (found.promote, found.champion) == (False, "advection")
    assert found.reason.startswith("not promoted: no difference in rmse over 5 to 15 minutes between ")


def test_a_champion_in_office_stays_until_one_is_better():
    better = decide(made(SIZES), Promotion(), FEW, REFERENCES, champion="video_transformer")
    assert (better.incumbent, better.champion) == ("video_transformer", "convlstm")
    stays = decide(made(SIZES), Promotion(), FEW, REFERENCES, champion="convlstm")
    assert (stays.candidate, stays.champion, stays.promote) == ("video_transformer", "convlstm", False)
    assert stays.reason.startswith("not promoted: rmse of video transformer over 5 to 15 minutes is ")
    assert "higher than that of convlstm" in stays.reason


def test_a_reference_may_replace_a_champion():
    found = decide(made(SIZES | {"convlstm": 3.0, "video_transformer": 3.0}), Promotion(), FEW, REFERENCES, "convlstm")
    assert (found.champion, found.promote) == ("advection", True)


def test_a_champion_without_sums_counts_as_none():
    assert decide(made(SIZES), Promotion(), FEW, REFERENCES, champion="gone").incumbent == "advection"


def test_incomparable_models_are_no_candidates():
    found = decide(made(SIZES), Promotion(), FEW, REFERENCES, excluded={"convlstm": ["other init times"]})
    assert found.champion == "video_transformer"
    stuck = decide(made(SIZES), Promotion(), FEW, REFERENCES, "convlstm", {"convlstm": ["other init times"]})
    assert (stuck.promote, stuck.champion) == (False, "convlstm")
    assert stuck.reason == "not promoted: the champion convlstm has no comparable scores: other init times"
    with pytest.raises(InputError, match="no model was scored on equal terms"):
        decide(made({"convlstm": 1.0}), Promotion(), FEW, [], excluded={"convlstm": ["why"]})


def test_a_single_model_takes_office():
    found = decide(made({"convlstm": 1.0}), Promotion(), FEW, REFERENCES)
    assert (found.candidate, found.champion, found.promote) == (None, "convlstm", False)
    assert found.reason == "convlstm is the only comparable model"


def test_leads_that_no_forecast_has_are_named():
    with pytest.raises(InputError, match="leads_minutes: no forecast reaches 90 minutes ahead, expected leads among"):
        decide(made(SIZES), Promotion(leads_minutes=[5, 90]), FEW, REFERENCES)


def test_a_guard_that_falls_is_named():
    promotion = Promotion.model_validate({"guards": {"max_mean_error": 0.5}})
    sums = made(SIZES | {"video_transformer": 3.0}) | made({"convlstm": 0.5}, offset=0.7)
    found = decide(sums, promotion, FEW, REFERENCES)
    assert (found.promote, found.champion) == (False, "advection")
    assert found.reason.startswith("not promoted: convlstm is kept out: mean error 0.")
    assert found.reason.endswith(" minutes is above 0.5 (promotion.guards.max_mean_error)")
    held = Promotion.model_validate({"guards": {"max_mean_error": 0.9}})
    assert decide(sums, held, FEW, REFERENCES).champion == "convlstm"


def test_the_next_best_is_promoted_where_a_guard_keeps_the_best_out():
    sums = made(SIZES)
    biased = made({"convlstm": 0.3}, offset=0.9)
    found = decide(sums | biased, Promotion(guards={"max_mean_error": 0.5}), FEW, REFERENCES)
    assert (found.champion, found.promote) == ("video_transformer", True)
    assert "guards hold; convlstm is kept out: mean error 0.9" in found.reason


def test_mean_errors_of_opposite_sign_do_not_cancel():
    errors = np.ones((20, 2, 4)) * np.array([0.6, -0.8])[:, None]
    promotion = Promotion.model_validate({"guards": {"max_mean_error": 0.7}})
    assert guard_fault(made_sums(errors), promotion) == (
        "mean error 0.8 at 10 minutes is above 0.7 (promotion.guards.max_mean_error)"
    )
    assert guard_fault(made_sums(errors), promotion.model_copy(update={"leads_minutes": [5]})) is None


@pytest.mark.parametrize(
    ("guards", "score", "values", "fault"),
    [
        ({"min_spectrum_ratio": 0.2}, "spectrum_ratio", (0.3, 0.08), "spectrum ratio 0.08 at 10 minutes is below 0.2"),
        ({"min_spectrum_ratio": 0.2}, "spectrum_ratio", (0.3, 0.25), None),
        ({"min_coverage": 0.8}, "coverage_90", (0.7, 0.9), "coverage 90 0.7 at 5 minutes is below 0.8"),
        ({"max_coverage": 0.95}, "coverage_90", (0.7, 0.99), "coverage 90 0.99 at 10 minutes is above 0.95"),
        ({"min_coverage": 0.8}, "coverage_90", (np.nan, np.nan), None),
        ({"min_coverage": 0.8}, "rmse", (9, 9), None),
        ({}, "spectrum_ratio", (0.01, 0.01), None),
    ],
)
def test_guards(monkeypatch, guards, score, values, fault):
    scores = {Score(score): dict(zip((5, 10), values, strict=True))}
    monkeypatch.setattr("fieldcast.pipeline.evaluation.promotion.scores_of", lambda sums: scores)
    found = guard_fault(made_sums(np.ones((3, 2, 2))), Promotion.model_validate({"guards": guards}))
    assert found == fault or (
        found is not None and fault is not None and found.startswith(f"{fault} (promotion.guards")
    )
