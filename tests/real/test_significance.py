"""Intervals and verdicts on series of real errors: 2 m temperature by the hour, rain by five minutes."""

import numpy as np
import pytest

from fieldcast.models.advection.forecast import forecast as advection
from fieldcast.pipeline.config import Compare
from fieldcast.pipeline.config.sources import GriddedOptions, RadarOptions
from fieldcast.pipeline.sources import open_source
from fieldcast.pipeline.verification.scores import Score
from fieldcast.pipeline.verification.significance import evidence
from tests.campaign import size
from tests.made_sums import made_sums

ALL = slice(None)
MAE, RMSE = Score("mae"), Score("rmse")
LEADS = {"temperature": (1, 3, 6, 12), "rain": (1, 3, 6)}


@pytest.fixture(scope="module")
def temperature(archive):
    """Return a month of hourly temperatures `(744, 33, 49)` in K."""
    source = open_source(GriddedOptions(path=str(archive / "era5" / "*.grib"), variables=["t2m"]))
    return source.segments()[0].read(np.arange(744), ALL, ALL)["t2m"].values


@pytest.fixture(scope="module")
def rain(archive):
    """Return 92 radar images in mm/h, a crop of 200 × 200 km in range as means over 4 × 4 cells: `(92, 50, 50)`."""
    options = RadarOptions.model_validate({"path": str(archive / "radar" / "knmi"), "format": "knmi"})
    rows, columns = slice(300, 500), slice(300, 500)
    segments = open_source(options).segments()
    frames = [segment.read(np.array([0]), rows, columns)["rain_rate"].values[0] for segment in segments]
    return np.stack(frames).reshape(92, 50, 4, 50, 4).mean((2, 4))


def losses(fields, lead, damping):
    """Return mean squared errors `(init, quarter of the grid)` of persistence and of damped persistence.

    The second draws departures from the mean of the hour to 0 (hourly fields), or from 0 where fields are fewer.
    """
    y, x = fields.shape[1] // 2, fields.shape[2] // 2
    hours = np.arange(len(fields)) % 24
    usual = np.stack([fields[hours == hour].mean(0) for hour in range(24)])[hours] if len(fields) > 100 else 0 * fields
    found = []
    for forecast in (fields[:-lead], usual[lead:] + damping**lead * (fields - usual)[:-lead]):
        square = (forecast - fields[lead:]) ** 2
        quarters = (square[:, a, b] for a in (slice(y), slice(y, None)) for b in (slice(x), slice(x, None)))
        found.append(np.stack([quarter.mean((1, 2)) for quarter in quarters], axis=-1))
    return found


def long_blocks(rng, population, n, length):
    """Return which times of a series of `population` make up one of `n`, joined from long pieces of it."""
    starts = rng.integers(population, size=-(-n // length))
    return ((starts[:, None] + np.arange(length)) % population).ravel()[:n]


def coverage(fields, leads, damping, n, length, repeats):
    """Return how often a 90 % interval holds the mean of the whole series: of errors, and of their differences."""
    rng = np.random.default_rng(0)
    inside: dict[str, list[bool]] = {"one": [], "pair": []}
    for lead in leads:
        one, other = (np.sqrt(loss) for loss in losses(fields, lead, damping))  # as errors of the same size
        truth, apart = (np.square(one).mean(0), (np.square(one) - np.square(other)).mean(0))
        for _ in range(repeats):
            drawn = long_blocks(rng, len(one), n, length)
            for quarter in range(one.shape[1]):
                pair = {"one": one[drawn, quarter], "other": other[drawn, quarter]}
                sums = {name: made_sums(np.square(errors)[:, None, None]) for name, errors in pair.items()}
                shown = evidence(sums, [MAE], Compare(confidence=0.9, resamples=200))  # of losses: means are exact
                interval, difference = shown.intervals["one", MAE][5], shown.between("one", "other", MAE)[5]
                inside["one"].append(interval.low <= truth[quarter] <= interval.high)
                inside["pair"].append(difference.low <= apart[quarter] <= difference.high)
    return {name: float(np.mean(held)) for name, held in inside.items()}


def test_intervals_of_temperature_errors_cover_as_they_say(temperature):
    """Test periods of 130 hours out of a month, in pieces of a day: weather of several days is one draw."""
    found = coverage(temperature, LEADS["temperature"], 0.9, n=130, length=24, repeats=15)
    assert 0.86 <= found["one"] <= 0.94, found
    assert 0.86 <= found["pair"] <= 0.94, found


def test_intervals_of_rain_errors_cover_as_they_say(rain):
    found = coverage(rain, LEADS["rain"], 0.9, n=64, length=16, repeats=size(10, 20))
    assert 0.86 <= found["one"] <= 0.94, found
    assert 0.86 <= found["pair"] <= 0.94, found


@pytest.mark.parametrize("name", ["temperature", "rain"])
def test_models_of_equal_skill_are_no_different(name, request):
    """Two models that swap their errors at random, block by block, are equally good: 93 in 100 are told so."""
    fields = request.getfixturevalue(name)
    rng = np.random.default_rng(1)
    words = []
    for lead in LEADS[name]:
        one, other = losses(fields, lead, 0.95)
        for _ in range(size(6, 12)):
            first = long_blocks(rng, len(one), 1, 1)[0]
            drawn = (first + np.arange(min(130, len(one)))) % len(one)
            swap = np.repeat(rng.random(-(-drawn.size // 8)) < 0.5, 8)[: drawn.size, None]
            pair = [np.where(swap, a[drawn], b[drawn]) for a, b in ((one, other), (other, one))]
            for quarter in range(one.shape[1]):
                sums = {str(k): made_sums(np.sqrt(loss[:, quarter])[:, None, None]) for k, loss in enumerate(pair)}
                shown = evidence(sums, [RMSE], Compare(confidence=0.95, resamples=200))
                words.append(shown.between("0", "1", RMSE)[5].word)
    assert words.count("no difference") >= 0.93 * len(words)


def test_advection_is_better_than_persistence_on_radar_images(rain):
    history, horizon = 3, 6
    inits = np.arange(history - 1, len(rain) - horizon)
    past = np.stack([rain[init - history + 1 : init + 1] for init in inits])[:, :, None].astype(np.float32)
    observed = np.stack([rain[init + 1 : init + 1 + horizon] for init in inits])
    moved, stays = advection(past, horizon, frames=history)[:, :, 0], np.repeat(past[:, -1], horizon, axis=1)
    flat = (len(inits), horizon, -1)
    sums = {
        name: made_sums((forecast - observed).reshape(flat), observed.reshape(flat))
        for name, forecast in (("advection", moved), ("persistence", stays))
    }
    shown = evidence(sums, [RMSE], Compare()).between("advection", "persistence", RMSE)
    assert {difference.word for difference in shown.values()} == {"better"}, shown
