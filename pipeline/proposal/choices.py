"""Settings that suit an archive: periods, history and horizon, transforms, thresholds, guards and models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.proposal.survey import Survey, Values

DAY = 1440  # minutes
RAIN_THRESHOLDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)  # mm/h
SHARES = (0.5, 0.8, 0.95)  # of the values, at which other thresholds lie
MOST_TEST, MOST_VALIDATION, MOST_TRAIN = 150, 100, 2400  # init times of a first run
STEPS = 300  # of a first training
BATCH = 8
FEWEST_OF_MOTION = 2  # frames of a history: one has no motion, and rain is moved along
FEWEST = 24  # init times in all three splits together
TRAIN_SHARE, VALIDATION_SHARE = 0.6, 0.4  # of all init times; of those after training
LONG_DAYS = 15  # of training, from which climatology goes by hour of day


@dataclass(frozen=True)
class Period:
    """One split."""

    start: np.datetime64
    end: np.datetime64
    every_steps: int
    count: int  # init times


@dataclass(frozen=True)
class Choices:
    """Settings of a project, and what their comments tell."""

    history: int
    horizon: int
    splits: Mapping[str, Period]
    transforms: Mapping[str, Mapping[str, Any]]
    thresholds: Mapping[str, Sequence[float]]
    neighbourhoods_km: Sequence[float]
    wet_above: Mapping[str, float]
    max_mean_error: Mapping[str, float]
    leads_minutes: Sequence[float]
    anomalies: bool
    epochs: int
    models: Mapping[str, Mapping[str, Any]]


def choose(survey: Survey) -> Choices:
    """Return settings for the archive; raise `InputError` where it is too short for any."""
    present, step = survey.info.time_axis.present, survey.step_minutes
    rain = survey.is_rain
    fewest = FEWEST_OF_MOTION if rain else 1
    history, horizon, splits = _periods(survey.info.time_axis.times, present, *_lengths(step), fewest)
    samples = min(splits["train"].count, MOST_TRAIN)
    leads = [step * lead for lead in dict.fromkeys((max(1, horizon // 2), horizon))]
    return Choices(
        history=history,
        horizon=horizon,
        splits=splits,
        transforms={name: _transform(survey, name) for name in survey.info.variables},
        thresholds={name: _thresholds(survey, name) for name in survey.info.variables},
        neighbourhoods_km=_neighbourhoods(survey.cell_km),
        wet_above={name: _wet_above(survey, name) for name in survey.info.variables},
        max_mean_error={name: max(rounded(survey.values[name].spread / 5), 1e-6) for name in survey.info.variables},
        leads_minutes=[int(lead) for lead in leads if lead == int(lead)],
        anomalies=not rain,
        epochs=min(max(1, round(STEPS * BATCH / samples)), 30),
        models=RAIN_MODELS if rain else OTHER_MODELS,
    )


RAIN_MODELS: Mapping[str, Mapping[str, Any]] = {
    "persistence": {"kind": "persistence"},
    "climatology": {"kind": "climatology"},
    "damped_persistence": {"kind": "damped_persistence"},
    "advection": {"kind": "advection"},
    "lagrangian_regression": {"kind": "lagrangian_regression"},
    "lagrangian_quantiles": {"kind": "lagrangian_regression", "output": "quantiles"},
    "unet": {"kind": "unet", "frame": "moving", "base": "lagrangian_regression"},
}
OTHER_MODELS: Mapping[str, Mapping[str, Any]] = {
    "persistence": {"kind": "persistence"},
    "climatology": {"kind": "climatology"},
    "damped_persistence": {"kind": "damped_persistence"},
    "linear": {"kind": "linear"},
    "linear_quantiles": {"kind": "linear", "output": "quantiles"},
    "unet": {"kind": "unet", "dropout": 0.1, "base": "linear"},
}


def rounded(value: float, digits: int = 2) -> float:
    """Return a value to so many significant digits."""
    return float(f"{value:.{digits}g}")


def _lengths(step: float) -> tuple[int, int]:
    """Return history and horizon in frames: an hour of minutes, half a day of hours, a week of days."""
    if step < 60:
        horizon = min(max(round(60 / step), 4), 12)
        return max(3, horizon // 2), horizon
    if step < DAY:
        return max(4, round(DAY / step)), max(4, round(DAY / 2 / step))
    return 7, 7


def _periods(
    times: np.ndarray, present: np.ndarray, history: int, horizon: int, fewest: int
) -> tuple[int, int, dict[str, Period]]:
    """Return history, horizon and splits; lengths shrink until enough init times have all of their frames.

    A history keeps the `fewest` frames at least.
    """
    while True:
        splits = _splits(times, _complete(present, history, horizon), history + horizon)
        if splits is not None:
            return history, horizon, splits
        if history + horizon <= fewest + 1:
            raise InputError(
                f"the archive has {int(present.sum())} frames, too few for training, validation and test, which lie "
                f"apart: expected some {FEWEST} consecutive init times: name more files"
            )
        history, horizon = max(fewest, 3 * history // 4), max(1, 3 * horizon // 4)


def _complete(present: np.ndarray, history: int, horizon: int) -> np.ndarray:
    """Return the positions of init times whose whole history and horizon are there."""
    missing = np.concatenate([[0], np.cumsum(~present)])
    places = np.arange(history - 1, present.size - horizon)
    complete: np.ndarray = places[missing[places + 1 + horizon] == missing[places + 1 - history]]
    return complete


def _splits(times: np.ndarray, places: np.ndarray, gap: int) -> dict[str, Period] | None:
    """Return three periods with a gap of so many steps between them; None where there are too few init times."""
    train = places[: math.ceil(TRAIN_SHARE * places.size)]
    later = places[places >= train[-1] + gap] if train.size else places
    validation = later[: math.ceil(VALIDATION_SHARE * later.size)]
    test = later[later >= validation[-1] + gap] if validation.size else later
    counts = [train.size, validation.size, test.size]
    if sum(counts) < FEWEST or min(counts) < FEWEST // 8:
        return None
    most = {"train": MOST_TRAIN, "validation": MOST_VALIDATION, "test": MOST_TEST}
    result = {}
    for (name, limit), part in zip(most.items(), (train, validation, test), strict=True):
        every = _every(part, limit)
        result[name] = Period(times[part[0]], times[part[-1]], every, int(((part - part[0]) % every == 0).sum()))
    return result


def _every(places: np.ndarray, limit: int) -> int:
    return max(1, math.ceil(places.size / limit))


def _transform(survey: Survey, name: str) -> dict[str, Any]:
    """Return the logarithm for amounts most of which are small, as rain; else the values themselves."""
    values = survey.values[name]
    if survey.info.variables[name] == RAIN_RATE_UNITS and values.low >= 0:
        return {"kind": "log", "floor": 2}
    if values.low >= 0 and values.zeros > 0.2 and values.positive.size:
        return {"kind": "log", "floor": rounded(float(np.median(values.positive)))}
    return {"kind": "identity"}


def _thresholds(survey: Survey, name: str) -> list[float]:
    """Return up to four thresholds of events that the frames have."""
    values = survey.values[name]
    if survey.info.variables[name] == RAIN_RATE_UNITS:
        reached = [level for level in RAIN_THRESHOLDS if _share(values, level) >= 1e-3]
        return (reached[1:5] if len(reached) > 4 else reached) or _quantiles(values)  # rarer ones have few events
    return _quantiles(values)


def _wet_above(survey: Survey, name: str) -> float:
    """Return what is counted in the quality report: drizzle of rain, else the median."""
    if survey.info.variables[name] == RAIN_RATE_UNITS:
        return 0.1
    return max(rounded(float(np.median(survey.values[name].ordered))), 1e-6)


def _share(values: Values, level: float) -> float:
    return float((values.ordered >= level).mean())


def _quantiles(values: Values) -> list[float]:
    """Return rounded quantiles that differ, of the amounts above 0 where many cells have none."""
    sample = values.positive if values.zeros > 0.2 and values.positive.size else values.ordered
    width = float(sample[-1] - sample[0])
    if width <= 0:
        return []
    digits = max(2, 2 + math.floor(math.log10(max(abs(sample[0]), abs(sample[-1])) / width)))  # 291 K, not 290
    levels = sorted({rounded(float(np.quantile(sample, share)), digits) for share in SHARES})
    return [level for level in levels if level <= values.high]


def _neighbourhoods(cell_km: tuple[float, float] | None) -> list[float]:
    """Return widths of about one, five and fifteen cells."""
    if cell_km is None:
        return []
    side = max(cell_km)
    return [rounded(side * cells, 3) for cells in (1.0, 5.0, 15.0)]
