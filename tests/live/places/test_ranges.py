"""Ranges of places: calibrated on made distributions, shares inside by the closed form, the file that keeps them."""

from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline.datasets import manifest
from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.forecasting import calibration
from fieldcast.pipeline.live.places.areas import Place
from fieldcast.pipeline.live.places.held_out import Cases, fit_shape
from fieldcast.pipeline.live.places.ranges import (
    COUNT,
    FILE,
    LEVELS,
    RangeCalibration,
    Ranges,
    inside,
    packed,
    quantified,
    quantities_of,
    ranked,
    read_ranges,
)

RAIN = Channel("rain_rate", "mm h-1", valid_min=0.0)
HEAT = Channel("temperature", "K")
CELL = Place("Town", 2, 3, np.ones((1, 1)), 7.0, 5.0, None)


def test_amounts_add_up_and_follow_their_rate() -> None:
    quantities = quantities_of([HEAT, RAIN])
    assert [(each.name, each.units) for each in quantities] == [
        ("temperature", "K"),
        ("rain_rate", "mm h-1"),
        ("rain_rate_amount", "mm"),
    ]
    series = np.array([[[280.0], [6.0]], [[281.0], [0.0]], [[282.0], [12.0]]])  # (lead, c, n)
    found = quantified(series, quantities, 10)
    np.testing.assert_allclose(found[:, 2, 0], [1, 1, 3])
    np.testing.assert_allclose(found[:, :2], series)


def test_the_range_holds_80_percent() -> None:
    assert LEVELS[1] == pytest.approx(0.1)
    assert LEVELS[-2] == pytest.approx(0.9)
    values = np.random.default_rng(0).normal(size=(400, 3))
    np.testing.assert_allclose(ranked(values), np.quantile(values, LEVELS, axis=0, method="hazen"))


def fit(ranks: np.ndarray, observed: np.ndarray, channel: Channel) -> RangeCalibration:
    """Return the calibration of quantiles (COUNT, n) of one lead and of a variable's mean."""
    return fit_shape(Cases(ranks[None, :, None, None], observed[None, None, None]), quantities_of([channel])[:1])


@pytest.mark.parametrize("members", [1, 4, 40])
def test_calibrated_ranges_hold_80_percent_of_new_cases(members: int) -> None:
    draws = np.random.default_rng(members)
    heat = quantities_of([HEAT])

    def cases(count: int) -> tuple[np.ndarray, np.ndarray]:
        centre = draws.normal(280, 5, count)
        return ranked(centre + 0.4 * draws.normal(size=(members, count))), centre + 1 + 2 * draws.normal(size=count)

    fitted = fit(*cases(20_000), HEAT)
    ranks, observed = cases(20_000)
    moved = fitted(ranks[:, None, None], heat)[:, 0, 0]
    assert inside(moved, observed).mean() == pytest.approx(0.8, abs=0.012)
    assert inside(ranks, observed).mean() < 0.4
    assert (np.diff(moved, axis=0) >= 0).all()


def test_a_dry_forecast_of_rain_has_a_range_too() -> None:
    draws = np.random.default_rng(3)
    observed = np.where(draws.random(10_000) < 0.7, 0.0, draws.gamma(1, 2, 10_000))
    fitted = fit(np.zeros((COUNT, 10_000)), observed, RAIN)
    dry = fitted(np.zeros((COUNT, 1, 1)), quantities_of([RAIN])[:1])[:, 0, 0]
    assert dry[:10].max() == 0  # up to level 19/30
    np.testing.assert_allclose(dry[11:], np.quantile(observed, LEVELS[11:]), rtol=0.05)


def test_members_that_say_nothing_of_an_area_are_drawn_to_their_mean() -> None:
    draws = np.random.default_rng(7)
    centre = draws.normal(280, 5, 20_000)
    of_cells = centre + draws.lognormal(0, 1, 20_000) * np.linspace(-3, 3, COUNT)[:, None]
    fitted = fit(of_cells, centre + 0.5 * draws.normal(size=20_000), HEAT)
    assert fitted.spread == 0
    ranks = (centre[:100] + np.zeros((COUNT, 1)))[:, None, None]
    moved = fitted(ranks, quantities_of([HEAT]))[:, 0, 0]
    np.testing.assert_allclose(moved[13] - moved[1], 2 * 0.5 * 1.2816, rtol=0.1)


def test_amounts_never_fall_with_the_lead() -> None:
    offsets = np.zeros((2, 2, 1, COUNT), np.float32)
    offsets[0, 1] = 5.0
    offsets = calibration.Calibration(offsets, np.zeros((2, 2, 1), np.float32))
    moved = RangeCalibration(1.0, offsets)(np.ones((COUNT, 2, 2)), quantities_of([RAIN]))
    np.testing.assert_array_equal(moved[:, :, 0], 1)
    np.testing.assert_array_equal(moved[:, :, 1], 6)


def test_the_ends_of_the_range_are_inside() -> None:
    ranks = np.repeat(np.concatenate([np.zeros(9), np.arange(1, 7)])[:, None], 5, 1)  # the last but one is 5
    np.testing.assert_array_equal(inside(ranks, np.array([0.0, 4.5, 5.0, 5.1, np.nan])), [1, 1, 1, 0, 0])


def test_ranges_are_kept_for_their_model_and_shape_alone(tmp_path: Path) -> None:
    quantities = quantities_of([RAIN])
    arrays = np.full((3, 2, 4, COUNT), 0.5, np.float32), np.zeros((3, 2, 4), np.float32)
    ranges = Ranges("model", {CELL.shape_key: RangeCalibration(0.5, calibration.Calibration(*arrays))})
    (tmp_path / FILE).write_bytes(packed(ranges))
    kept = read_ranges(tmp_path)
    members = np.random.default_rng(0).gamma(1, size=(5, 3, 2))
    found, is_calibrated = kept.range_of(CELL, members, quantities, "model")
    assert is_calibrated
    ranks = ranked(members)[:, :, 0]
    np.testing.assert_allclose(found[:, :, 0], (ranks + ranks.mean(axis=0)) / 2 + 0.5, rtol=1e-6)
    for model, place in (("other", CELL), ("model", Place("x", 0, 0, np.ones((2, 1)), 0, 0, 8.0))):
        raw, is_calibrated = kept.range_of(place, members, quantities, model)
        assert not is_calibrated
        np.testing.assert_array_equal(raw, ranked(members))
        single, _ = kept.range_of(place, members[:1], quantities, model)
        assert np.isnan(single).all()


def test_a_damaged_file_leaves_ranges_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_ranges(tmp_path).of_shape == {}
    content = bytearray(packed(Ranges("model")))
    content[40] ^= 1
    (tmp_path / FILE).write_bytes(content)
    assert read_ranges(tmp_path).model_digest == ""
    assert "fieldcast places" in caplog.text
    older = {"model_digest": np.array("model"), "abc.calibration.offsets": np.zeros(1)}
    np.savez(tmp_path / FILE, **older)
    (tmp_path / FILE).write_bytes(manifest.with_tail((tmp_path / FILE).read_bytes()))
    assert read_ranges(tmp_path).of_shape == {}
    assert "has no spread of abc" in caplog.text
