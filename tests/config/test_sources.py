from datetime import datetime

import pytest
from pydantic import TypeAdapter, ValidationError

from fieldcast.pipeline.config.sources import IngestOptions, RadarOptions, SourceOptions, StormsOptions

SOURCE = TypeAdapter(SourceOptions)


def test_kind_selects_the_options():
    assert isinstance(SOURCE.validate_python({"kind": "storms"}), StormsOptions)
    radar = SOURCE.validate_python({"kind": "radar", "path": "x", "format": "bom", "crop": {"y": [0, 4], "x": [1, 3]}})
    assert isinstance(radar, RadarOptions)
    assert radar.crop is not None
    assert radar.crop.x == (1, 3)


def test_times_with_a_zone_become_utc():
    options = StormsOptions.model_validate({"period": ["2020-01-01T02:00+02:00", "2020-01-02T00:00Z"]})
    assert options.period == (datetime(2020, 1, 1), datetime(2020, 1, 2))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "stroms"}, "does not match any of the expected tags"),
        ({"kind": "storms", "evnets": 3}, "Extra inputs are not permitted"),
        ({"kind": "storms", "events": "many"}, "valid integer"),
        ({"kind": "storms", "coarsen": 0}, "greater than 0"),
        ({"kind": "storms", "period": ["2020-01-02", "2020-01-01"]}, "period is empty"),
        ({"kind": "storms", "crop": {"y": [4, 4], "x": [0, 1]}}, r"y is \[4, 4\], expected 0 <= start < stop"),
        ({"kind": "storms", "event_minutes": 12}, "event_minutes is 12, expected a multiple"),
        ({"kind": "storms", "event_every_minutes": 60}, "event_every_minutes is 60, expected a multiple"),
        ({"kind": "storms", "wind_speed_m_s": [9, 3]}, "expected 0 <= low <= high"),
        ({"kind": "storms", "wet_fraction": [0, 0.3]}, "expected 0 < low <= high < 1"),
        ({"kind": "radar", "path": "x", "format": "knmi", "z_r": [200, 1.6]}, "z_r is for reflectivity"),
        ({"kind": "gridded", "path": "x", "variables": []}, "at least 1 item"),
        ({"kind": "gridded", "path": "x", "variables": ["a", "a"]}, "a name twice"),
        ({"kind": "moving_mnist", "train_images": "a", "test_images": "b", "train_sha256": "abc"}, "match pattern"),
    ],
)
def test_bad_options_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        SOURCE.validate_python(values)


def test_ingest_options_refuse_unknown_rules():
    with pytest.raises(ValidationError, match="'refuse', 'first', 'last' or 'merge'"):
        IngestOptions.model_validate({"duplicates": "drop"})
