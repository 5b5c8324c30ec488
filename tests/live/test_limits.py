"""Values that no instrument gives: the frame is refused, the forecast says so, and the status names it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from fieldcast.pipeline.datasets.signature import Channel
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.live import cycle
from fieldcast.pipeline.live.feed.limits import beyond, limits_of
from fieldcast.pipeline.live.monitoring.status import read_status
from tests.live import feeds
from tests.live.clocks import SimulatedClock
from tests.live.contexts import minutes, params, radar_context

RAIN = Channel("rain_rate", "mm h-1", valid_min=0.0, min=0.0, max=50.0)


@pytest.mark.parametrize(
    ("channel", "limits"),
    [
        (RAIN, (-0.5, 3000.0)),
        (replace(RAIN, max=4.0, valid_max=100.0), (-0.04, 100.04)),
        (Channel("t2m", "K", min=250.0, max=310.0), (100.0, 400.0)),
        (Channel("cape", "J kg-1", min=0.0, max=5000.0), (-500_000.0, 505_000.0)),
        (Channel("cape", "J kg-1"), (None, None)),
        (Channel("u10", "m s-1"), (-500.0, 500.0)),
    ],
)
def test_limits_are_the_narrowest_of_units_and_training_data(
    channel: Channel, limits: tuple[float | None, float | None]
) -> None:
    assert limits_of([channel], {})[channel.name] == pytest.approx(limits)
    assert limits_of([channel], {channel.name: (None, 7.0)})[channel.name] == (None, 7.0)


def test_limits_of_another_variable_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"live\.limits has 'rain', which the model does not read: expected one of rain_"
    ):
        limits_of([RAIN], {"rain": (0.0, 1.0)})
    with pytest.raises(ValidationError, match="expected a lower limit below the upper one, found 5 and 5"):
        params({"limits": {"rain_rate": [5, 5]}})


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (3000.0, None),
        (np.nan, None),
        (3001.0, "rain_rate is 3001 in one of 1 cells beyond what is possible, expected -0.5 to 3000"),
        (9e29, "rain_rate is 9e+29 in one of 1 cells"),
        (-0.4, None),
        (-1.0, "rain_rate is -1 in one of 1 cells"),
    ],
)
def test_one_cell_is_enough(value: float, reason: str | None) -> None:
    field = np.full((3, 5), 2.0, np.float32)
    field[1, 4] = value
    found = beyond({"rain_rate": field}, limits_of([RAIN], {}))
    assert found is None if reason is None else found is not None and found.startswith(reason)


def test_a_frame_that_no_radar_gives_is_refused_until_its_file_is_another(tmp_path: Path) -> None:
    for offset in range(0, 70, 10):
        feeds.write_bom(tmp_path / "feed", offset)
    wild = feeds.frame(6)
    wild[3, 3] = 32_000  # 9600 mm/h
    feeds.write_bom(tmp_path / "feed", 60, wild)
    context = radar_context(tmp_path, SimulatedClock(feeds.at(60) + minutes(1)))
    (waiting,) = cycle.run(context)
    assert waiting.missing == ["2024-06-01T01:00:00Z"]
    status = read_status(context.params, context.folder, context.clock)
    (line,) = status.refused
    assert line.startswith(f"{tmp_path / 'feed' / 'rain_0060.nc'}: time 2024-06-01T01:00:00Z: rain_rate is 9600 in one")
    assert status.as_dict()["refused"] == [line]
    context.clock.sleep(60)
    assert cycle.run(context)[0].missing == waiting.missing
    assert len(read_status(context.params, context.folder, context.clock).refused) == 1  # reported once
    context.clock.sleep(600)
    assert cycle.run(context)[0].quality == "fallback_persistence"
    feeds.write_bom(tmp_path / "feed", 70)
    feeds.write_bom(tmp_path / "feed", 60, feeds.frame(6) + 1)
    context.clock.sleep(60)
    assert [one.quality for one in cycle.run(context)] == ["good"]


def test_limits_of_one_s_own(tmp_path: Path) -> None:
    for offset in range(0, 70, 10):
        feeds.write_bom(tmp_path / "feed", offset)
    clock = SimulatedClock(feeds.at(60) + minutes(1))
    context = radar_context(tmp_path, clock, {"limits": {"rain_rate": [0, 10]}})
    assert len(cycle.run(context)[0].missing) == 3
    context = radar_context(tmp_path, clock, {"limits": {"rain_rate": [None, 1000]}})
    assert [one.quality for one in cycle.run(context)] == ["good"]  # other limits: files are read again
