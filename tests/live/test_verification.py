"""Sums of issued forecasts against the pipeline's own verification, and the alarms that follow from them."""

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import xarray as xr

from fieldcast.models.layers.latest import latest_valid
from fieldcast.pipeline.config import Drift, Verify
from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.live.archive.ledger import Cycle, State, Verification
from fieldcast.pipeline.live.archive.records import cycle_record, scores_record
from fieldcast.pipeline.live.monitoring.drift import alarms, first_init_time, outside_share
from fieldcast.pipeline.live.monitoring.verification import scores_of, sums_of
from fieldcast.pipeline.verification.aggregation import field_sums
from fieldcast.pipeline.verification.aggregation import scores_of as pipeline_scores
from fieldcast.pipeline.verification.blocks import verify
from fieldcast.pipeline.verification.scores import by_key
from tests.live.publishing import START, at

HISTORY, LEADS, HEIGHT, WIDTH = 3, 2, 5, 7
THRESHOLDS = {"rain_rate": [0.5, 2.0], "wind": [1.0]}
OPTIONS = Verify(thresholds=THRESHOLDS)
NAMES = ("rain_rate", "wind")
UNITS = {"rain_rate": "mm h-1", "wind": "m s-1"}
DIMS = ("init_time", "lead_time", "y", "x")
STEP = np.timedelta64(300, "s").astype("timedelta64[ns]")
FIRST = np.datetime64("2020-10-31T06:00", "ns")
FRAMES = 30


def observed_frames() -> np.ndarray:
    """Return frames (t, c, y, x): a column that was never observed, single missing cells, and a frame without any."""
    random = np.random.default_rng(3)
    frames = random.gamma(0.7, 2.0, (FRAMES, len(NAMES), HEIGHT, WIDTH)).astype(np.float32)
    frames[random.random(frames.shape) < 0.1] = np.nan
    frames[:, :, :, 4] = np.nan
    frames[20] = np.nan
    return frames


OBSERVED = observed_frames()


def history(number: int) -> np.ndarray:
    return OBSERVED[number : number + HISTORY]


def truth(number: int) -> np.ndarray:
    return OBSERVED[number + HISTORY : number + HISTORY + LEADS]


def forecast(number: int, leads: int = LEADS) -> xr.Dataset:
    """Return a forecast that is missing only where nothing was observed before."""
    random = np.random.default_rng(number)
    still = latest_valid(history(number)[None])[0]
    values = still + random.normal(0, 1, (leads, *still.shape)).astype(np.float32)
    return dataset(number, values)


def dataset(number: int, values: np.ndarray) -> xr.Dataset:
    init = FIRST + (number + HISTORY - 1) * STEP
    leads = (np.arange(len(values)) + 1) * STEP
    fields = {name: (DIMS, values[None, :, i], {"units": UNITS[name]}) for i, name in enumerate(NAMES)}
    coords = {
        "init_time": [init],
        "lead_time": leads,
        "valid_time": (("init_time", "lead_time"), (init + leads)[None]),
        "y": ("y", 2.0 * np.arange(HEIGHT), {"units": "km"}),
        "x": ("x", 2.0 * np.arange(WIDTH), {"units": "km"}),
    }
    return xr.Dataset(fields, coords)


def observations() -> xr.Dataset:
    times = FIRST + np.arange(FRAMES) * STEP
    fields = {name: (("time", "y", "x"), OBSERVED[:, i], {"units": UNITS[name]}) for i, name in enumerate(NAMES)}
    one = dataset(0, truth(0))
    return xr.Dataset(fields, {"time": times, "y": one["y"], "x": one["x"]})


def own(number: int) -> dict[str, Any]:
    return sums_of(forecast(number), truth(number), history(number), NAMES, THRESHOLDS)


def verified(number: int, sums: dict[str, Any] | None = None) -> Verification:
    """Return the sums as the ledger gives them back."""
    kept = json.loads(json.dumps(own(number) if sums is None else sums, sort_keys=True))
    return Verification(at(number), 0, at(number + 5), "convlstm", "3", kept)


NUMBERS = (0, 4, 9, 15, 18)  # the truth of 15 and 18 has the frame without any cell


@pytest.mark.parametrize("number", NUMBERS)
def test_sums_of_one_cycle_are_those_of_the_pipeline(number: int) -> None:
    made = own(number)
    theirs = verify(forecast(number), observations(), OPTIONS)
    still = np.broadcast_to(latest_valid(history(number)[None])[0], (LEADS, len(NAMES), HEIGHT, WIDTH))
    references = verify(dataset(number, still), observations(), OPTIONS)
    for name in NAMES:
        assert made[name]["lead_minutes"] == [5, 10]
        assert made[name]["units"] == UNITS[name]
        for which, expected in (("forecast", theirs), ("persistence", references)):
            sums = field_sums(expected, name)
            for key, values in made[name][which].items():
                np.testing.assert_array_equal(values, sums[key].values[0])


def test_cells_on_the_sphere_count_by_area_as_in_the_pipeline() -> None:
    axes = {"y": {"units": "degrees_north"}, "x": {"units": "degrees_east"}}
    onto = lambda data: data.assign_coords({axis: (axis, 10 * data[axis].values, axes[axis]) for axis in axes})  # noqa: E731
    issued = onto(forecast(4))
    kept = sums_of(issued, truth(4), history(4), NAMES, THRESHOLDS)
    sums = verify(issued, onto(observations()), OPTIONS)
    for name in NAMES:
        for key, values in kept[name]["forecast"].items():
            np.testing.assert_array_equal(values, field_sums(sums, name)[key].values[0])
    assert kept["rain_rate"]["forecast"]["weight"] != kept["rain_rate"]["forecast"]["n"]
    expected = by_key(pipeline_scores(sums))
    for scores in scores_of([verified(4, kept)]):
        np.testing.assert_array_equal(scores.rmse, list(expected[f"{scores.field}/rmse"].values()))


def test_sums_of_earlier_versions_had_no_weights() -> None:
    earlier = own(0)
    for field in earlier.values():
        for side in ("forecast", "persistence"):
            del field[side]["weight"], field[side]["frames"]
    assert scores_of([verified(0, earlier)]) == scores_of([verified(0)])


def test_scores_of_many_cycles_are_those_of_the_pipeline() -> None:
    sums = xr.concat([verify(forecast(it), observations(), OPTIONS) for it in NUMBERS], "init_time")
    expected = by_key(pipeline_scores(sums))
    scores = scores_of([verified(it) for it in NUMBERS])
    assert [it.field for it in scores] == list(NAMES)
    for it in scores:
        assert it.cycles == len(NUMBERS)
        assert (it.lead_minutes, it.units, it.thresholds) == ([5, 10], UNITS[it.field], THRESHOLDS[it.field])
        for ours, key in ((it.rmse, "rmse"), (it.mean_error, "mean_error")):
            np.testing.assert_allclose(ours, list(expected[f"{it.field}/{key}"].values()), rtol=1e-12)
        for i, threshold in enumerate(it.thresholds):
            unit = {"rain_rate": "mm_h", "wind": "m_s"}[it.field]
            key = next(name for name in expected if name.startswith(f"{it.field}/csi_{threshold:g}_{unit}"))
            np.testing.assert_allclose([row[i] for row in it.csi], list(expected[key].values()), rtol=1e-12)
        overall = it.overall
        assert overall["rmse"] == pytest.approx(np.sqrt(np.mean(np.square(it.rmse))))
        assert overall["rmse_ratio"] == pytest.approx(overall["rmse"] / overall["persistence_rmse"])
        assert overall["mean_error"] == pytest.approx(np.mean(it.mean_error))


def test_cells_that_one_side_lacks_do_not_count() -> None:
    made = own(0)["rain_rate"]
    there = np.isfinite(truth(0)[:, 0]) & np.isfinite(forecast(0)["rain_rate"].values[0])
    assert made["forecast"]["n"] == made["persistence"]["n"] == there.sum(axis=(1, 2)).tolist()
    assert 0 < made["forecast"]["n"][0] < HEIGHT * WIDTH
    with_gap = sums_of(forecast(0), np.full_like(truth(0), np.nan), history(0), NAMES, THRESHOLDS)
    assert with_gap["rain_rate"]["forecast"]["n"] == [0.0, 0.0]
    (scores, _) = scores_of([verified(0, with_gap)])
    assert np.isnan([*scores.rmse, *scores.csi[0], *scores.overall.values()]).all()


def test_leads_and_thresholds_that_only_some_cycles_have() -> None:
    """A new model may have another horizon, and the parameters other thresholds."""
    short, long = own(0), sums_of(forecast(4, 4), OBSERVED[7:11], history(4), NAMES, {"rain_rate": [9.0]})
    for order in ([short, long], [long, short]):
        scores = {it.field: it for it in scores_of([verified(i, sums) for i, sums in enumerate(order)])}["rain_rate"]
        assert scores.lead_minutes == [5, 10, 15, 20]
        n = np.array(short["rain_rate"]["forecast"]["n"]) + long["rain_rate"]["forecast"]["n"][:2]
        squares = np.array(short["rain_rate"]["forecast"]["squared_error"])
        squares += long["rain_rate"]["forecast"]["squared_error"][:2]
        np.testing.assert_allclose(scores.rmse[:2], np.sqrt(squares / n))
        alone = np.array(long["rain_rate"]["forecast"]["squared_error"][2:]) / long["rain_rate"]["forecast"]["n"][2:]
        np.testing.assert_allclose(scores.rmse[2:], np.sqrt(alone))
        assert scores.thresholds == order[-1]["rain_rate"]["thresholds"]
        assert [len(row) for row in scores.csi] == [len(scores.thresholds)] * 4
        if order[-1] is short:
            assert np.isnan(scores.csi[2:]).all()
            np.testing.assert_array_equal(scores.csi[:2], scores_of([verified(0, short)])[0].csi)


def test_cycles_in_other_units_are_not_pooled() -> None:
    other = {"rain_rate": {**own(4)["rain_rate"], "units": "mm"}}
    scores = scores_of([verified(4, other), verified(0)])
    assert [(it.field, it.cycles, it.units) for it in scores] == [("rain_rate", 1, "mm h-1"), ("wind", 1, "m s-1")]
    assert scores == scores_of([verified(0)])


def test_without_thresholds_there_is_no_csi() -> None:
    sums = sums_of(forecast(0), truth(0), history(0), NAMES, {})
    assert [(it.thresholds, it.csi) for it in scores_of([verified(0, sums)])] == [([], [[], []])] * 2
    assert scores_of([]) == []


def made_up(error: float, still: float, cells: float = 100.0) -> dict[str, Any]:
    """Return sums of forecasts with this mean error, and of persistence with another, in every cell."""
    sides = {
        which: {
            "n": [cells],
            "error": [cells * value],
            "squared_error": [cells * value**2],
            **{key: [[]] for key in ("hits", "misses", "false_alarms", "correct_negatives")},
        }
        for which, value in (("forecast", error), ("persistence", still))
    }
    return {"rain_rate": {"units": "mm h-1", "lead_minutes": [5], "thresholds": [], **sides}}


def told(error: float, still: float, count: int, options: Drift, shares: tuple[float, ...] = ()) -> list[str]:
    done = [verified(number, made_up(error, still)) for number in range(count)]
    issued = [Cycle(at(i), state=State.PUBLISHED, outside_share=share) for i, share in enumerate(shares)]
    return alarms(done, issued, options)


def test_an_rmse_above_that_of_persistence_is_an_alarm() -> None:
    options = Drift(min_cycles=3)
    assert told(1.0, 1.0, 3, options) == []
    assert told(1.01, 1.0, 2, options) == []
    assert told(1.01, 1.0, 3, options) == [
        "RMSE of rain_rate is 1.01 times that of persistence over 3 cycles, allowed 1 (live.drift.max_rmse_ratio)"
    ]
    assert told(1.01, 1.0, 3, Drift(min_cycles=3, max_rmse_ratio=1.1)) == []
    assert told(0.0, 0.0, 3, options) == []  # no rain at all


def test_a_mean_error_is_an_alarm_where_it_is_looked_at() -> None:
    assert told(-0.6, 1.0, 12, Drift()) == []
    assert told(-0.6, 1.0, 12, Drift(max_mean_error=0.7)) == []
    assert told(-0.6, 1.0, 12, Drift(max_mean_error=0.5)) == [
        "mean error of rain_rate is -0.6 mm h-1 over 12 cycles, allowed 0.5 (live.drift.max_mean_error)"
    ]


def test_inputs_outside_the_training_range_are_an_alarm() -> None:
    options = Drift(min_cycles=2, max_outside_share=0.1)
    assert told(0, 1, 0, options, (0.1, 0.1)) == []
    assert told(0, 1, 0, options, (0.9,)) == []
    assert told(0, 1, 0, options, (0.3, 0.0)) == [
        "15.0% of the input cells of 2 cycles lie outside the range of the training data, allowed 10.0% "
        "(live.drift.max_outside_share)"
    ]


def test_outside_share() -> None:
    channels = [Channel("rain_rate", "mm h-1", min=0.0, max=10.0), Channel("t2m", "C", min=-5.0, max=5.0)]
    fields = np.zeros((2, 2, 1, 2), np.float32)
    assert outside_share(fields, channels) == 0.0
    fields[0, 0, 0, 0], fields[1, 1, 0, 1], fields[0, 1, 0, 0] = 10.0, 5.5, -6.0
    assert outside_share(fields, channels) == 2 / 8
    fields[1] = np.nan
    assert outside_share(fields, channels) == 1 / 4
    assert outside_share(np.full_like(fields, np.nan), channels) == 0.0
    third = np.float32(0.1)
    assert (
        outside_share(np.full((1, 1, 1, 1), third), [replace(channels[0], min=float(third), max=float(third))]) == 0.0
    )


def test_the_period_of_drift() -> None:
    assert first_init_time(START, Drift(days=1.5)) == START - timedelta(hours=36)


def test_what_the_tracker_is_told() -> None:
    cycle = Cycle(at(3), model="convlstm", model_version="storms/3", quality="filled", n_input_missing=1)
    cycle = replace(cycle, outside_share=0.25, timings={"model": 1.5})
    assert cycle_record(cycle) == {
        "day": "2020-10-31",
        "model": "convlstm",
        "model_version": "storms/3",
        "kind": "cycle",
        "at": "2020-10-31T06:15:00Z",
        "values": {
            "cycle/seconds_model": 1.5,
            "cycle/degraded": 1.0,
            "cycle/input_frames_missing": 1.0,
            "cycle/input_outside_training_range": 0.25,
        },
        "step": 375,
        "tags": {},
    }
    one = scores_record(cycle, verified(0, made_up(3.0, 4.0)))
    assert one["kind"] == "scores"
    assert one["values"] == {
        "scores/rmse": 3.0,
        "scores/persistence_rmse": 4.0,
        "scores/rmse_ratio": 0.75,
        "scores/mean_error": 3.0,
        "scores/rmse_0005_min": 3.0,
    }
    nothing = scores_record(cycle, verified(0, made_up(3.0, 4.0, cells=0.0)))
    assert nothing["values"] == {}  # NaN says nothing
    several = scores_record(cycle, verified(0))
    assert {key.split("/")[0] for key in several["values"]} == {"rain_rate", "wind"}
