import numpy as np
import pytest

from fieldcast.pipeline.config import Compare, Promotion
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.evaluation.promotion import decide
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
    assert found.reason.endswith(" %), better than the best reference at each lead, guards hold")
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
    assert found.reason.startswith("not promoted: no certain difference in rmse over 5 to 15 minutes between ")


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


BY_LEAD = {"persistence": (0.5, 1.0, 2.0), "climatology": (1.4, 1.2, 1.0)}


def made_by_lead(convlstm):
    """Return sums of two references, each better at some leads, and of a model; errors are as large as given."""
    rng = np.random.default_rng(3)
    sizes = {**BY_LEAD, "convlstm": convlstm}
    return {name: made_sums(rng.normal(0, 1, (64, 3, 9)) * np.array(own)[:, None]) for name, own in sizes.items()}


def test_the_best_reference_is_that_of_each_lead():
    found = decide(made_by_lead((1.0, 1.05, 0.95)), Promotion(), FEW, list(BY_LEAD))
    assert (found.promote, found.champion, found.candidate) == (False, "climatology", "convlstm")
    assert "rmse of convlstm over 5 to 15 minutes is" in found.reason
    assert "higher than that of the best reference at each lead (95 %" in found.reason
    squares = [own**2 for own in (0.5, 1.0, 1.0)]
    assert found.differences[0].value == pytest.approx((2.98 / 3) ** 0.5 - np.mean(squares) ** 0.5, abs=0.05)


def test_a_champion_beats_the_best_reference_at_each_named_lead():
    sums = made_by_lead((0.6, 0.5, 0.4))
    found = decide(sums, Promotion(), FEW, list(BY_LEAD))
    assert (found.promote, found.champion) == (False, "climatology")
    assert found.reason == (
        "not promoted: convlstm is kept out: rmse at 5 minutes is not certainly better than that of persistence "
        "(promotion.leads_minutes)"
    )
    named = decide(sums, Promotion(leads_minutes=[10, 15]), FEW, list(BY_LEAD))
    assert (named.promote, named.champion) == (True, "convlstm")
    assert "over 10 to 15 minutes" in named.reason
    assert decide(sums, Promotion(), FEW, list(BY_LEAD), champion="persistence").promote is False
    assert decide(sums, Promotion(), FEW, [], champion="persistence").promote is True


def test_the_reference_in_office_is_within_the_guards():
    sums = made(SIZES | {"convlstm": 9.0, "video_transformer": 9.0}) | made({"advection": 0.3}, offset=0.9)
    found = decide(sums, Promotion(guards={"max_mean_error": 0.5}), FEW, REFERENCES)
    assert (found.promote, found.champion) == (False, "persistence")
    assert "; advection is kept out: mean error 0.9" in found.reason
    assert decide(sums, Promotion(), FEW, REFERENCES).champion == "advection"


def rainy(seed, share, cells=400, inits=40):
    """Return errors of a model that misses the given share of heavy rain, and what was observed."""
    rng = np.random.default_rng(seed)
    observed = np.where(np.random.default_rng(0).random((inits, 2, cells)) < 0.1, 6.0, 0.0)
    missed = (rng.random(observed.shape) < share) & (observed > 0)
    return np.where(missed, -2.0, 0.0) + rng.normal(0, 0.1, observed.shape), observed


@pytest.mark.parametrize(("share", "promoted"), [(0.9, False), (0.5, True), (0.1, True)])
def test_a_model_that_misses_heavy_events_is_no_champion(share, promoted):
    errors, observed = rainy(1, 0.2)
    levels = [1.0, 5.0, 50.0]  # nothing reaches the last
    sums = {"advection": made_sums(4 * errors, observed, thresholds=levels)}
    sums["convlstm"] = made_sums(rainy(2, share)[0], observed, thresholds=levels)
    found = decide(sums, Promotion(), FEW, ["advection"])
    assert (found.promote, found.champion) == (promoted, "convlstm" if promoted else "advection")
    fault = f"CSI ≥ 5 mm/h {1 - share:.2f} at 5 minutes is below 0.5 of the 0.79 of advection (promotion.guards."
    assert (fault in found.reason) is not promoted
    free = Promotion(guards={"min_csi_ratio": None})
    assert decide(sums, free, FEW, ["advection"]).champion == "convlstm"
    strict = decide(sums, Promotion(guards={"min_csi_ratio": 1.0}), FEW, ["advection"])
    assert ("is worse than the 0.79 of advection" in strict.reason) == (share > 0.2)


def user(ratio, threshold=5.0):
    return Promotion.model_validate({"score": "value", "cost_loss": {"threshold": threshold, "ratio": ratio}})


def test_the_users_own_value_decides():
    levels = [1.0, 5.0]
    names = {"persistence": 0.6, "advection": 0.5, "convlstm": 0.1}
    sums = {name: made_sums(*rainy(k, share), thresholds=levels) for k, (name, share) in enumerate(names.items())}
    found = decide(sums, user(0.1), FEW, REFERENCES)
    assert (found.champion, found.incumbent, found.promote) == ("convlstm", "advection", True)
    caught = {name: own["rain.hits"].sel({"rain.threshold": 5}).sum().item() for name, own in sums.items()}
    events = sum(
        sums["advection"][f"rain.{name}"].sel({"rain.threshold": 5}).sum().item() for name in ("hits", "misses")
    )
    cases = float(sums["advection"]["rain.weight"].sum())
    better = 0.9 * (caught["convlstm"] - caught["advection"]) / (min(0.1 * cases, events) - 0.1 * events)
    assert (
        f"value of convlstm over 5 to 10 minutes is {100 * better:.1f} % higher than that of advection" in found.reason
    )
    stays = decide(sums, user(0.1), FEW, REFERENCES, champion="convlstm")
    assert (stays.champion, stays.promote) == ("convlstm", False)


def test_a_user_of_an_event_that_is_not_counted_is_refused():
    sums = {name: made_sums(*rainy(1, 0.2), thresholds=[1.0]) for name in ("advection", "convlstm")}
    with pytest.raises(InputError, match=r"cost_loss.threshold is 5, verify.thresholds of rain are \[1.0\]: add it"):
        decide(sums, user(0.1), FEW, REFERENCES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"score": "value"}, "expected cost_loss beside it"),
        ({"cost_loss": {"threshold": 1, "ratio": 0.2}}, "cost_loss is of the score value, and score is rmse"),
        ({"score": "value", "cost_loss": {"threshold": 1, "ratio": 0.95}}, "less than or equal to 0.9"),
        ({"score": "value", "cost_loss": {"threshold": 1, "ratio": 0}}, "greater than 0"),
    ],
)
def test_a_score_of_value_has_a_user(content, message):
    with pytest.raises(ValueError, match=message):
        Promotion.model_validate(content)
