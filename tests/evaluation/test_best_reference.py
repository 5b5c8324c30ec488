import math

import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.evaluation.best_reference import NAME, best_joined, best_of, joined
from fieldcast.pipeline.verification.scores import Score
from fieldcast.pipeline.verification.significance import evidence
from tests.made_sums import made_sums

RMSE = Score("rmse")
SIZES = {"persistence": (0.5, 1.0, 2.0), "climatology": (1.5, 1.4, 1.3)}


@pytest.fixture
def sums():
    rng = np.random.default_rng(3)
    return {name: made_sums(rng.normal(0, 1, (40, 3, 9)) * np.array(own)[:, None]) for name, own in SIZES.items()}


@pytest.fixture
def shown(sums):
    return evidence(sums, [RMSE], Compare(resamples=100))


def test_each_lead_has_its_best(shown):
    assert [best_of(shown, list(SIZES), RMSE, lead) for lead in (5, 10, 15)] == ["persistence"] * 2 + ["climatology"]
    assert best_of(shown, [], RMSE, 5) is None


def test_joined_sums_have_each_leads_own(sums, shown):
    name, best = best_joined(sums, list(SIZES), shown, RMSE, [5, 15])
    assert name == NAME
    for lead, model in enumerate(("persistence", "persistence", "climatology")):
        xr.testing.assert_equal(best.isel(lead_time=lead), sums[model].isel(lead_time=lead))
    assert best_joined(sums, list(SIZES), shown, RMSE, [5, 10])[0] == "persistence"


def test_sums_that_only_some_references_have_are_dropped(sums):
    ranked = sums["climatology"].assign(
        {"rain.rank_histogram": (("init_time", "lead_time", "rank"), np.ones((40, 3, 5)))}
    )
    both = joined({**sums, "climatology": ranked}, ["climatology", "climatology", "persistence"])
    assert "rain.rank_histogram" not in both
    assert set(both.data_vars) == set(sums["persistence"].data_vars)


def test_without_a_defined_score_nothing_is_best(sums):
    nothing = {name: own.assign({"rain.weight": 0 * own["rain.weight"]}) for name, own in sums.items()}
    shown = evidence(nothing, [RMSE], Compare(resamples=100))
    assert math.isnan(shown.intervals["climatology", RMSE][5].value)
    assert best_of(shown, list(SIZES), RMSE, 5) is None
