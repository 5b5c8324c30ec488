"""Networks that see flipped fields: what they forecast, and what is said of their errors."""

from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline import config, verify
from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.datasets.frames import read_init_times
from fieldcast.pipeline.datasets.paths import CHECKPOINTS, FORECASTS, OBSERVATIONS, PREPARED, SCORES
from fieldcast.pipeline.datasets.schema import INIT_TIME, MIRRORED
from fieldcast.pipeline.evaluation.mirror import mirror_fact, mirror_sentences, mirror_test
from fieldcast.pipeline.forecast import forecast
from fieldcast.pipeline.forecasting.mirror import flipped, forecast_mirrored
from fieldcast.pipeline.train import train
from fieldcast.pipeline.verification.aggregation import with_mirrored
from fieldcast.pipeline.verification.sums_file import read_sums, write_sums
from tests.conftest import rewrite
from tests.forecasting.test_checkpoint import TIMES
from tests.forecasting.test_frame import forecaster, rain
from tests.made_sums import made_sums

OPTIONS = Compare(resamples=200, seed=1)


def test_winds_turn_with_the_field() -> None:
    fields = np.arange(12.0).reshape(3, 1, 4)
    seen = flipped(fields, ["t2m", "u10", "v10"])
    np.testing.assert_array_equal(seen[:, 0], [[3, 2, 1, 0], [-7, -6, -5, -4], [11, 10, 9, 8]])


def test_what_was_flipped_is_flipped_back() -> None:
    made = forecaster("unet", 0.1, frame="moving")
    straight = made.members(rain(), TIMES)
    again = forecast_mirrored(made, flipped(rain(), ["rain_rate"]), TIMES, None, 0)
    np.testing.assert_allclose(again, flipped(straight, ["rain_rate"]), rtol=1e-5, atol=1e-5)


def test_larger_errors_of_flipped_fields_are_noticed() -> None:
    errors = np.random.default_rng(1).normal(0, 1, (60, 3, 9))
    larger = errors * np.array([1.0, 1.5, 1.5])[:, None]
    every_third = made_sums(larger).isel({INIT_TIME: slice(None, None, 3)})
    test = mirror_test(with_mirrored(made_sums(errors), every_third), OPTIONS)
    assert test is not None
    own = np.sqrt((errors[::3] ** 2).mean(axis=(0, 2)))
    assert list(test.rmse.values()) == pytest.approx(own)
    assert [difference.value for difference in test.growth.values()] == pytest.approx([0, own[1] / 2, own[2] / 2])
    assert [difference.word for difference in test.growth.values()] == ["no difference", "worse", "worse"]
    assert mirror_sentences({"a_model": test}) == [
        "a model forecasts flipped fields worse, RMSE from 10 to 15 minutes: it has learned where the weather of the "
        "training period comes from."
    ]
    assert mirror_fact({"a_model": test}) == "RMSE at the lead where it changes most: a model +50.0 %"
    assert mirror_test(made_sums(errors), OPTIONS) is None


def test_errors_that_grow_certainly_but_by_nothing_that_matters_have_no_sentence() -> None:
    errors = np.random.default_rng(1).normal(0, 1, (60, 3, 9))
    test = mirror_test(with_mirrored(made_sums(errors), made_sums(1.004 * errors)), OPTIONS)
    assert test is not None
    assert [difference.word for difference in test.growth.values()] == ["worse"] * 3
    assert mirror_sentences({"a_model": test}) == []
    assert mirror_fact({"a_model": test}).endswith("a model +0.4 %")


def test_the_stages_make_and_count_them(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = rewrite(project, {"models": {"unet": {"kind": "unet", "channels": 4, "levels": 1, "frame": "moving"}}})
    train(params, "unet")
    init_times = read_init_times(PREPARED / "init_times.csv", "test")
    out = FORECASTS / "unet.zarr"
    forecast(CHECKPOINTS / "unet", OBSERVATIONS, init_times, out, config.Forecast())
    mirrored = store.open_forecasts(out / MIRRORED)
    assert list(mirrored.data_vars) == list(store.open_forecasts(out).data_vars)
    monkeypatch.setattr("sys.argv", ["verify", "--model", "unet"])
    verify.main()
    sums = read_sums(SCORES / "unet.nc")
    tested = (sums["rain_rate.mirrored_weight"] > 0).all("lead_time")
    np.testing.assert_array_equal(sums[INIT_TIME][tested], mirrored[INIT_TIME])
    write_sums(sums, SCORES / "unet.nc")  # again as they are
    assert mirror_test(sums, OPTIONS) is not None
