import math
from dataclasses import replace

import pytest

from fieldcast.pipeline.evaluation.verdict import (
    NO_REFERENCES,
    against_references,
    best_models,
    hidden_faults,
    leaders,
    of_trainings,
    spans,
    verdict,
)
from fieldcast.pipeline.verification.scores import Score
from fieldcast.pipeline.verification.significance import Difference, Evidence, Interval

LEADS = (15, 30, 45, 60)
REFERENCES = ["persistence", "advection"]
RMSE, CSI = Score("rmse"), Score("csi", 1.0, units="mm h-1")


def made(values, margin=0.1, score=RMSE, exact=False):
    """Return evidence from `{model: values at LEADS}`: differences are certain where larger than `margin`.

    `exact`: equal values are equal at every init time, so that their difference has no margin.
    """
    intervals, pairs = {}, {}
    names = list(values)
    higher = 1 if score == CSI else -1
    for k, model in enumerate(names):
        own = dict(zip(LEADS, values[model], strict=True))
        intervals[model, score] = {lead: Interval(value, value - 1, value + 1) for lead, value in own.items()}
        for other in names[k + 1 :]:
            pairs[model, other, score] = {}
            for lead, against in zip(LEADS, values[other], strict=True):
                value = own[lead] - against
                word = "no difference" if not abs(value) > margin else "better" if value * higher > 0 else "worse"
                half = 0 if exact and value == 0 else margin
                difference = Difference(model, other, score, lead, value, value - half, value + half, 0.5, word)
                pairs[model, other, score][lead] = difference
    return Evidence(names, 0.95, 7, 130, intervals, pairs)


@pytest.fixture
def shown():
    return made(
        {
            "persistence": (2.0, 2.5, 3.0, 3.0),
            "advection": (1.0, 1.5, 2.5, 2.6),
            "convlstm": (1.5, 1.55, 2.0, 2.0),
            "video_transformer": (1.7, 1.9, 2.05, 2.05),
        }
    )


def test_best_alone_or_with_those_that_are_not_certainly_worse(shown):
    assert leaders(shown, RMSE, 15) == ("advection",)
    assert leaders(shown, RMSE, 30) == ("advection", "convlstm")
    assert best_models(shown, RMSE) == (
        "RMSE: advection is better than every other model at 15 minutes; no certain difference between advection and "
        "convlstm at 30 minutes; no certain difference between convlstm and video transformer from 45 to 60 minutes."
    )


def test_more_than_a_few_are_not_named():
    names = ("a", "b", "c", "d", "e")
    shown = made({name: (1, 1, 1, 1 + k) for k, name in enumerate(names)} | {"f": (9, 9, 9, 9)})
    assert best_models(shown, RMSE) == (
        "RMSE: no certain best, with more than 3 models within chance of it, from 15 to 45 minutes; a is better than "
        "every other model at 60 minutes."
    )


def test_higher_values_are_better_for_csi():
    shown = made({"a": (0.5, 0.5, 0.5, 0.5), "b": (0.9, 0.9, 0.9, 0.9)}, score=CSI)
    assert best_models(shown, CSI) == "CSI ≥ 1 mm/h: b is better than every other model at every lead."


def test_levels_and_lone_models():
    assert best_models(made({"a": (1, 1, 1, 1), "b": (1, 1, 1, 1)}), RMSE) == (
        "RMSE: no certain difference between any models at every lead."
    )
    assert best_models(made({"a": (1, 1, 1, 1)}), RMSE) == "RMSE: a is the only model at every lead."
    nothing = made({"a": (math.nan, 1, 1, 1), "b": (math.nan, 2, 2, 2)})
    assert best_models(nothing, RMSE) == (
        "RMSE: undefined at 15 minutes; a is better than every other model from 30 to 60 minutes."
    )


def test_an_undefined_model_leads_nothing():
    shown = made({"a": (math.nan, 1, 1, 1), "b": (3, 2, 2, 2)})
    assert leaders(shown, RMSE, 15) == ("b",)


def test_learned_models_against_the_best_reference_of_each_lead(shown):
    assert against_references(shown, "convlstm", REFERENCES, RMSE) == (
        "convlstm against the best reference, RMSE: worse than advection at 15 minutes; no certain difference from "
        "advection at 30 minutes; better than advection from 45 to 60 minutes."
    )
    changing = made({"persistence": (1, 1, 3, 3), "advection": (2, 2, 2, 2), "convlstm": (1.5, 1.5, 1.5, 1.5)})
    assert against_references(changing, "convlstm", REFERENCES, RMSE) == (
        "convlstm against the best reference, RMSE: worse than persistence from 15 to 30 minutes; better than "
        "advection from 45 to 60 minutes."
    )


def scores(ratio, csi):
    return {
        RMSE: dict.fromkeys(LEADS, 1.0),
        Score("spectrum_ratio"): dict.fromkeys(LEADS, ratio),
        CSI: dict.fromkeys(LEADS, 0.5),
        CSI._replace(threshold=10.0): dict.fromkeys(LEADS, csi),
    }


def test_a_blurred_winner_is_warned_of(shown):
    metrics = {name: scores(0.9, 0.3) for name in shown.models} | {"convlstm": scores(0.12, 0.3)}
    assert hidden_faults(shown, metrics, RMSE) == [
        "convlstm has the best RMSE at 60 minutes with a blurred field: 12 % of the observed variance at fine scales."
    ]


def test_a_winner_that_misses_heavy_events_is_warned_of(shown):
    metrics = {name: scores(0.9, 0.3) for name in shown.models} | {"convlstm": scores(0.9, 0.14)}
    (sentence,) = hidden_faults(shown, metrics, RMSE)
    assert sentence == (
        "convlstm has the best RMSE at 60 minutes but misses heavy events: CSI ≥ 10 mm/h is 0.14, the best "
        "model's 0.30."
    )
    assert hidden_faults(shown, metrics | {"convlstm": scores(0.9, 0.16)}, RMSE) == []


def test_heavy_events_are_those_of_which_some_model_has_any(shown):
    heavier = CSI._replace(threshold=50.0)
    metrics = {name: scores(0.9, 0.3) | {heavier: dict.fromkeys(LEADS, 0.0)} for name in shown.models}
    metrics["convlstm"] = scores(0.9, 0.1) | {heavier: dict.fromkeys(LEADS, 0.0)}
    metrics["left_out"] = {heavier: dict.fromkeys(LEADS, 0.9)}
    (sentence,) = hidden_faults(shown, metrics, RMSE)
    assert sentence.endswith("misses heavy events: CSI ≥ 10 mm/h is 0.10, the best model's 0.30.")


def test_scores_that_are_not_there_warn_of_nothing(shown):
    metrics = {name: {RMSE: dict.fromkeys(LEADS, 1.0)} for name in shown.models}
    assert hidden_faults(shown, metrics, RMSE) == []
    undefined = {name: scores(math.nan, math.nan) for name in shown.models}
    assert hidden_faults(shown, undefined, RMSE) == []


def test_the_verdict_in_its_order(shown):
    metrics = {name: scores(0.9, 0.3) for name in shown.models}
    left_out = {"old_model": ["20 init times instead of 130 (persistence)", "scored on other cells than persistence"]}
    sentences = verdict(shown, metrics, [RMSE], REFERENCES, left_out)
    assert [sentence.split()[0] for sentence in sentences] == ["RMSE:", "convlstm", "video", "old", "Differences"]
    assert sentences[-2] == (
        "old model is left out: 20 init times instead of 130 (persistence); scored on other cells than persistence."
    )
    assert sentences[-1] == (
        "Differences over 130 init times, paired block bootstrap, blocks of 7 init times, 95 % confidence; not "
        "corrected for many comparisons."
    )


def test_spans_of_leads():
    assert spans([(15, 60)], LEADS) == "from 15 to 60 minutes"
    assert spans([(15, 15), (45, 60)], LEADS) == "at 15 and 45–60 minutes"
    assert spans([(60, 180)], [60, 120, 180]) == "from 1 to 3 hours"


TWO, THREE = (2.0, 2.0, 2.0, 2.0), (3.0, 3.0, 3.0, 3.0)
LATER = (3.0, 3.0, 1.5, 1.5)  # the better reference at long leads
FIRST_PART = "better than a from 15 to 30 minutes"


@pytest.mark.parametrize(
    ("values", "references", "sentence"),
    [
        ((1.0, 1.0, 1.0, 1.0), (TWO,), "better than a at every lead"),
        (THREE, (TWO,), "worse than a at every lead"),
        ((2.05, 1.95, 2.05, 2.0001), (TWO,), "no certain difference from a at every lead"),
        (TWO, (TWO,), "equal to a at every lead"),
        ((3.0, 2.0, 2.0, 2.0), (TWO,), "worse than a at 15 minutes; equal to a from 30 to 60 minutes"),
        ((1.0, 3.0, 1.0, 3.0), (TWO,), "better than a at 15 and 45 minutes; worse than a at 30 and 60 minutes"),
        ((1.0, 3.0, 3.0, 3.0), (TWO,), "better than a at 15 minutes; worse than a from 30 to 60 minutes"),
        ((1.0, 1.0, 1.0, math.nan), (TWO,), "better than a from 15 to 45 minutes; undefined at 60 minutes"),
        ((1.0, 1.0, 1.0, 1.0), (TWO, LATER), f"{FIRST_PART}; better than b from 45 to 60 minutes"),
        ((1.0, 1.0, 1.8, 1.5), (TWO, LATER), f"{FIRST_PART}; worse than b at 45 minutes; equal to b at 60 minutes"),
    ],
)
def test_every_outcome_against_the_best_reference_has_its_words(values, references, sentence):
    shown = made(dict(zip("ab", references, strict=False)) | {"net": values}, exact=True)
    said = against_references(shown, "net", list("ab"[: len(references)]), RMSE)
    assert said == f"net against the best reference, RMSE: {sentence}."


BEST = "is better than every other model"


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"a": TWO, "b": THREE}, f"a {BEST} at every lead"),
        ({"a": (1.0, 3.0, 1.0, 3.0), "b": TWO}, f"a {BEST} at 15 and 45 minutes; b {BEST} at 30 and 60 minutes"),
        ({"a": TWO, "b": TWO}, "no certain difference between any models at every lead"),
        ({"a": TWO, "b": TWO, "c": THREE}, "no certain difference between a and b at every lead"),
        ({"a": TWO}, "a is the only model at every lead"),
    ],
)
def test_every_outcome_of_all_models_has_its_words(values, sentence):
    assert best_models(made(values), RMSE) == f"RMSE: {sentence}."


def test_one_lead_is_named_by_itself(shown):
    intervals = {key: {30: by_lead[30]} for key, by_lead in shown.intervals.items()}
    pairs = {key: {30: by_lead[30]} for key, by_lead in shown.pairs.items()}
    one = Evidence(shown.models, 0.95, 7, 130, intervals, pairs)
    assert best_models(one, RMSE) == "RMSE: no certain difference between advection and convlstm at 30 minutes."
    assert against_references(one, "video_transformer", REFERENCES, RMSE) == (
        "video transformer against the best reference, RMSE: worse than advection at 30 minutes."
    )


def test_without_references_the_verdict_says_so(shown):
    metrics = {name: scores(0.9, 0.3) for name in shown.models}
    assert NO_REFERENCES in verdict(shown, metrics, [RMSE], [])
    assert NO_REFERENCES not in verdict(shown, metrics, [RMSE], REFERENCES)


def test_trainings_of_one_model_are_told_with_their_spread(shown):
    trained = replace(shown, trainings=(("convlstm", "video_transformer"),))
    assert of_trainings(trained, trained.trainings[0], RMSE) == (
        "convlstm and video transformer are 2 trainings of one model, RMSE 1.6 ± 0.1 at 15 minutes and 2.02 ± 0.04 at "
        "60 minutes (mean ± standard deviation): their intervals and differences allow for that."
    )
    metrics = {model: {RMSE: {60.0: 2.0}} for model in shown.models}
    assert of_trainings(trained, trained.trainings[0], RMSE) in verdict(trained, metrics, [RMSE], REFERENCES)


def test_one_hour_is_no_hours():
    assert spans([(60, 60)], [60, 120, 180]) == "at 1 hour"
    assert spans([(60, 60), (180, 180)], [60, 120, 180]) == "at 1 and 3 hours"
