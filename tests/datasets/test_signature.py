import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyproj
import pytest
import xarray as xr

from fieldcast.pipeline.datasets.signature import DataSignature, compare_signatures, signature_of
from fieldcast.pipeline.sources.template import grid_template

RD = pyproj.CRS.from_epsg(28992)
STEP, FIRST = np.timedelta64(5, "m"), np.datetime64("2024-06-01T00:01:30", "ns")


def grid(shift: float = 0.0, crs: pyproj.CRS | None = RD) -> xr.Dataset:
    """Return two variables on 3 rows of 2 km, from north to south, and 4 columns of 2 km."""
    y = xr.Variable("y", [5.0 + shift, 3.0 + shift, 1.0 + shift], {"units": "km"})
    x = xr.Variable("x", [-3.0 + shift, -1.0 + shift, 1.0 + shift, 3.0 + shift])
    return grid_template(y, x, {"rain_rate": {"units": "mm h-1"}, "t2m": {"units": "K"}}, {}, crs)


def signature(**changes: Any) -> DataSignature:
    return signature_of(grid(**changes), ["rain_rate", "t2m"], STEP, FIRST)


def test_by_hand_and_in_json() -> None:
    expected = {
        "units": {"rain_rate": "mm h-1", "t2m": "K"},
        "y": {"cells": 3, "first": 5.0, "last": 1.0, "units": "km"},
        "x": {"cells": 4, "first": -3.0, "last": 3.0, "units": "1"},
        "crs": RD.to_wkt(),
        "step_minutes": 5,
        "phase_seconds": 90,
    }
    assert signature().as_dict() == expected
    assert DataSignature.from_dict(json.loads(json.dumps(expected))) == signature()
    assert signature(crs=None).crs is None
    assert signature().grid_shape == (3, 4)
    assert signature().cell_km == 2.0


def test_any_time_of_the_axis_gives_the_phase() -> None:
    for frames in (-10_000_000, -1, 1, 12345):  # the first is before 1970
        moved = signature_of(grid(), ["rain_rate", "t2m"], STEP, FIRST + frames * STEP)
        assert moved == signature()


def test_digest_is_that_of_the_content() -> None:
    shuffled = dict(reversed(signature().as_dict().items()))
    assert DataSignature.from_dict(shuffled).digest == signature().digest
    assert len(signature().digest) == 64
    assert signature(shift=0.1).digest != signature().digest
    around_zero = [signature(shift=3 + jitter) for jitter in (-1e-9, 0.0, 1e-9)]
    assert len({it.digest for it in around_zero}) == 1


def other(change: Callable[[dict[str, Any]], Any]) -> DataSignature:
    changed = signature().as_dict()
    change(changed)
    return DataSignature.from_dict(changed)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c["units"].update(rain_rate="mm"), "units of rain_rate are 'mm', expected 'mm h-1'"),
        (lambda c: c["units"].pop("rain_rate"), "there is no rain_rate among t2m, expected it in 'mm h-1'"),
        (lambda c: c["units"].clear(), "there is no rain_rate among the variables, expected it in 'mm h-1'"),
        (lambda c: c["x"].update(units="km"), "units of x are 'km', expected '1'"),
        (lambda c: c["x"].update(cells=128), "x has 128 cells, expected 4"),
        (lambda c: c["y"].update(first=500.0), "y starts at 500, expected 5 km"),
        (lambda c: c["x"].update(last=3.01), "x ends at 3.01, expected 3 1"),
        (lambda c: c["y"].update(first=1.0, last=5.0), "y starts at 1, expected 5 km"),
        (lambda c: c.update(crs=None), "the CRS is missing, expected 'Amersfoort / RD New'"),
        (lambda c: c.update(crs="nonsense"), "the CRS is not valid WKT, expected 'Amersfoort / RD New'"),
        (lambda c: c.update(step_minutes=10), "the step is 10 minutes, expected 5"),
        (lambda c: c.update(phase_seconds=0), "frames are 0 s after whole steps of 5 minutes, expected 90 s"),
    ],
)
def test_the_first_difference_is_named(change: Callable[[dict[str, Any]], Any], words: str) -> None:
    assert compare_signatures(signature(), other(change)) == words


def test_jitter_below_a_thousandth_of_a_cell_does_not_matter() -> None:
    assert compare_signatures(signature(), signature()) is None
    assert compare_signatures(signature(), signature(shift=0.0019)) is None
    assert compare_signatures(signature(), signature(shift=-0.0019)) is None
    difference = compare_signatures(signature(), signature(shift=0.0021))
    assert difference == "y starts at 5.0021, expected 5 km"
    single = [signature_of(grid(shift).isel(y=[0], x=[0]), ["t2m"], STEP, FIRST) for shift in (0.0, 4e-7, 0.001)]
    assert compare_signatures(single[0], single[1]) is None
    assert compare_signatures(single[0], single[2]) is not None


def test_the_same_crs_in_other_words_is_the_same() -> None:
    for text in (RD.to_wkt(pretty=True), RD.to_wkt("WKT2_2019_SIMPLIFIED")):
        assert text != signature().crs
        assert compare_signatures(signature(), replace(signature(), crs=text)) is None


def test_another_projection_is_named_by_its_parameters() -> None:
    here, there = (
        pyproj.CRS.from_proj4(f"+proj=stere +lat_0=90 +lat_ts={lat} +a=6378137 +b=6356752") for lat in (60, 75)
    )
    difference = compare_signatures(signature(crs=there), signature(crs=here))
    assert difference == "standard_parallel of the CRS is 60.0, expected 75.0"
    renamed = here.to_wkt().replace('"unknown"', '"mine"', 1)
    assert compare_signatures(signature(crs=here), replace(signature(), crs=renamed)) is None  # a name moves no cell
    assert "expected missing" in str(compare_signatures(signature(crs=None), signature()))


def test_variables_that_no_model_reads_do_not_matter() -> None:
    rain = signature_of(grid(), ["rain_rate"], STEP, FIRST)
    assert compare_signatures(rain, signature()) is None
    found = signature_of(grid()[["t2m"]], ["rain_rate"], STEP, FIRST)
    assert compare_signatures(rain, found) == "there is no rain_rate among the variables, expected it in 'mm h-1'"
