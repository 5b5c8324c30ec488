from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldcast.pipeline import train
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import PREPARED
from fieldcast.pipeline.forecasting.checkpoint import Fitted
from fieldcast.pipeline.training import validation
from tests.conftest import rewrite


def test_members_are_calibrated_on_the_validation_period(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors on the training period are smaller than those that a forecast will have."""
    seen: list[np.ndarray] = []

    class Nothing:
        inside_range = None

        def arrays(self) -> dict[str, np.ndarray]:
            return {}

    def forecasts(params: Any, forecaster: Any, init_times: np.ndarray, *_: Any) -> list[Any]:
        seen.append(init_times)
        return []

    monkeypatch.setattr(validation, "forecaster_of", lambda *_: Nothing())
    monkeypatch.setattr(validation, "decide", lambda *_: Nothing())
    monkeypatch.setattr(validation, "validation_forecasts", forecasts)
    monkeypatch.setattr(validation.calibration, "fit", lambda *_: Nothing())
    params = rewrite(project, {})
    validation.with_calibration(params, train.describe(params, "steps", "digest"), Fitted({}, {}))
    wanted = read_init_times(PREPARED / "init_times.csv", "validation")
    assert len(wanted) > 1
    np.testing.assert_array_equal(seen[0], wanted)
