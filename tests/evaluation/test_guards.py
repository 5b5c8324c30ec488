import numpy as np
import pytest

from fieldcast.pipeline.config import Guards, Promotion
from fieldcast.pipeline.evaluation.guards import EVENTFUL, guard_fault, heavy_events
from fieldcast.pipeline.verification.scores import Score
from tests.made_sums import made_sums


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
        ({}, "spectrum_ratio", (0.3, 0.03), None),  # a regression of rain, an hour ahead
        ({}, "spectrum_ratio", (0.1, 0.0035), "spectrum ratio 0.0035 at 10 minutes is below 0.01"),
        ({"min_spectrum_ratio": None}, "spectrum_ratio", (0.1, 0.0035), None),
        ({}, "spectrum_ratio", (np.nan, np.nan), None),
    ],
)
def test_guards(monkeypatch, guards, score, values, fault):
    scores = {Score(score): dict(zip((5, 10), values, strict=True))}
    monkeypatch.setattr("fieldcast.pipeline.evaluation.guards.scores_of", lambda sums: scores)
    found = guard_fault(made_sums(np.ones((3, 2, 2))), Promotion.model_validate({"guards": guards}))
    assert found == fault or (
        found is not None and fault is not None and found.startswith(f"{fault} (promotion.guards")
    )


def test_guards_against_blur_are_on():
    assert (Guards().min_spectrum_ratio, Guards().min_csi_ratio) == (0.01, 0.5)


@pytest.mark.parametrize(("inits", "highest"), [(EVENTFUL, 5.0), (EVENTFUL - 1, 1.0)])
def test_the_highest_threshold_with_events_at_every_lead(inits, highest):
    observed = np.full((20, 2, 30), 2.0)
    observed[:, 0, 3], observed[:inits, 1, 3] = 7.0, 7.0
    sums = made_sums(np.zeros(observed.shape), observed, thresholds=[1.0, 5.0, 10.0])
    assert heavy_events(sums, [5, 10]) == Score("csi", highest, None, "mm h-1", "")
    assert heavy_events(sums, [5]).threshold == 5.0
    assert heavy_events(made_sums(np.zeros((20, 2, 3)), thresholds=[1.0]), [5]) is None
    assert heavy_events(made_sums(np.zeros((20, 2, 3))), [5]) is None
