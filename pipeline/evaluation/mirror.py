"""Mirror test, the verdict: whether a network forecasts fields worse that are flipped from left to right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import xarray as xr

from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.datasets.labels import readable
from fieldcast.pipeline.datasets.schema import INIT_TIME, MIRRORED
from fieldcast.pipeline.evaluation.verdict import spans, unbroken
from fieldcast.pipeline.verification.aggregation import ERRORS, fields_of
from fieldcast.pipeline.verification.scores import Score
from fieldcast.pipeline.verification.significance import Difference, evidence

RMSE = Score("rmse")
MATTERS = 0.005  # of the RMSE: paired differences of a tenth of that may be certain
AS_IT_IS, FLIPPED = "as it is", "flipped"


@dataclass(frozen=True)
class MirrorTest:
    """RMSE by lead in minutes, and by how much it grows where the model sees flipped fields."""

    rmse: Mapping[float, float]
    growth: Mapping[float, Difference]

    def is_worse(self, lead: float) -> bool:
        """Return whether flipped fields are forecast worse: certainly, and by a share of the RMSE that `MATTERS`."""
        difference = self.growth[lead]
        return difference.word == "worse" and difference.value >= MATTERS * self.rmse[lead]


def mirror_test(sums: xr.Dataset, options: Compare) -> MirrorTest | None:
    """Return the test of a model by its sums of one field; None where it has no forecasts of flipped ones."""
    (name,) = fields_of(sums)
    if f"{name}.{MIRRORED}_weight" not in sums:
        return None
    weight = sums[f"{name}.{MIRRORED}_weight"]
    tested = np.flatnonzero((weight > 0).any([dim for dim in weight.dims if dim != INIT_TIME]))
    own = sums[[f"{name}.{part}" for part in ("n", *ERRORS)]].isel({INIT_TIME: tested})
    flipped = own.assign({f"{name}.{part}": sums[f"{name}.{MIRRORED}_{part}"][tested] for part in ERRORS})
    score = Score("rmse")
    found = evidence({FLIPPED: flipped, AS_IT_IS: own}, [score], options)
    rmse = {lead: interval.value for lead, interval in found.intervals[AS_IT_IS, score].items()}
    return MirrorTest(rmse, found.between(FLIPPED, AS_IT_IS, score))


def mirror_sentences(tests: Mapping[str, MirrorTest]) -> list[str]:
    """Return a sentence about each model that is certainly worse at some lead, and by a share that `MATTERS`."""
    sentences = []
    for model, test in tests.items():
        worse = unbroken({lead: test.is_worse(lead) for lead in test.growth})
        if worse:
            sentences.append(
                f"{readable(model)} forecasts flipped fields worse, RMSE {spans(worse, list(test.rmse))}: it has "
                "learned where the weather of the training period comes from."
            )
    return sentences


def mirror_fact(tests: Mapping[str, MirrorTest]) -> str:
    """Return by how much each model's RMSE grows at the lead where it grows most, as text."""
    parts = []
    for model, test in tests.items():
        shares = [difference.value / test.rmse[lead] for lead, difference in test.growth.items() if test.rmse[lead]]
        if shares:
            parts.append(f"{readable(model)} {round(100 * max(shares), 1) + 0.0:+.1f} %")  # + 0.0: of -0.0
    return f"RMSE at the lead where it changes most: {', '.join(parts)}"
