import time

import numpy as np
import pytest

from fieldcast.pipeline.config.sources import StormsOptions
from fieldcast.pipeline.sources import inspect_source, open_source
from fieldcast.pipeline.sources.storms import rain_rate, simulate

FEW = StormsOptions(events=3, event_minutes=120)


@pytest.fixture(scope="module")
def events() -> np.ndarray:
    return np.stack([simulate(StormsOptions(), event) for event in range(10)])


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_rain_looks_like_radar_rain(events):
    wet = events > 0.1
    assert 0.10 < wet.mean() < 0.25
    assert 1.5 < events[wet].mean() < 4  # mm/h
    assert 40 < events.max() < 100
    assert events.min() == 0
    assert np.isfinite(events).all()


def test_neighbouring_frames_are_alike_and_distant_ones_are_not(events):
    by_event = [(correlation(e[:-1], e[1:]), correlation(e[:-12], e[12:])) for e in events]
    after_5, after_60 = np.mean(by_event, axis=0)
    assert 0.65 < after_5 < 0.95
    assert after_60 < 0.35


def test_along_the_motion_frames_stay_alike(events):
    """The best shift of a frame by whole cells matches the frame 15 minutes later better than no shift."""
    gains = []
    for event in events:
        now, later = event[20], event[23]
        inner = now[16:48, 16:48]
        shifted = [correlation(inner, later[y : y + 32, x : x + 32]) for y in range(33) for x in range(33)]
        gains.append((max(shifted), correlation(inner, later[16:48, 16:48])))
    moved, still = np.nanmean(gains, axis=0)
    assert moved > 0.7
    assert moved > still + 0.2


def test_rain_rate_by_hand():
    rates = rain_rate(np.array([-1.0, 0.0, 1.0, 50.0]))
    once = np.e**1.3 - 1  # 2.669 mm/h, before saturation
    np.testing.assert_allclose(rates, [0, 0, 100 * (1 - np.exp(-once / 100)), 100])


def test_hills_lie_still_and_change_the_climate():
    flat, hilly = (StormsOptions(orography=strength) for strength in (0.0, 0.6))
    means = [np.mean([simulate(options, event) > 0.1 for event in range(6)], axis=(0, 1)) for options in (flat, hilly)]
    assert means[1].std() > 1.3 * means[0].std()


def test_an_event_depends_on_its_number_alone():
    more = FEW.model_copy(update={"events": 40})
    np.testing.assert_array_equal(simulate(FEW, 2), simulate(more, 2))
    assert not np.array_equal(simulate(FEW, 1), simulate(FEW, 2))
    assert not np.array_equal(simulate(FEW, 1), simulate(FEW.model_copy(update={"seed": 1}), 1))


@pytest.mark.parametrize(
    "change",
    [
        {"wind_speed_m_s": (1.0, 2.0)},
        {"wet_fraction": (0.4, 0.6)},
        {"lifetime_minutes": 10.0},
        {"orography": 0.0},
        {"spacing_km": 1.0},
        {"step_minutes": 10},
    ],
)
def test_every_physical_option_has_an_effect(change):
    changed = simulate(StormsOptions.model_validate({**FEW.model_dump(), **change}), 0)
    assert changed.shape != simulate(FEW, 0).shape or not np.array_equal(changed, simulate(FEW, 0))


def test_events_start_at_regular_intervals():
    parts = open_source(FEW).segments()
    assert [part.name for part in parts] == ["storm 0", "storm 1", "storm 2"]
    assert parts[1].times[0] == np.datetime64("2020-01-01T06:00")
    assert parts[1].times.size == 24
    summary = inspect_source(FEW)
    assert summary.time_axis.present.sum() == 3 * 24
    assert summary.time_axis.times.size == 2 * 72 + 24
    assert summary.variables == {"rain_rate": "mm h-1"}
    assert summary.spacing == (2.0, 2.0)


def test_reading_some_frames_equals_some_of_all():
    part = open_source(FEW).segments()[1]
    some = part.read(np.array([2, 5]), slice(3, 9), slice(0, 4))
    np.testing.assert_array_equal(some["rain_rate"].values, simulate(FEW, 1)[[2, 5], 3:9, :4])
    np.testing.assert_array_equal(some.time.values, part.times[[2, 5]])


def test_an_event_is_fast():
    begin = time.process_time()
    simulate(StormsOptions(), 0)
    assert time.process_time() - begin < 2
