"""Rules that hold for all units, limits and coordinates, tried on whatever hypothesis draws."""

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldcast.pipeline.datasets.grid import METRES_PER_UNIT, SPELLINGS, check_axis, spacing_km, unit_of
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.accumulations import RATES, as_rate
from fieldcast.pipeline.sources.missing import IMPOSSIBLE, limits_of, without_impossible
from fieldcast.pipeline.sources.template import target_grid

HARD = settings(max_examples=200, deadline=None)
WHOLE = st.integers(-30_000, 30_000)
SCALES = st.floats(1e-4, 100) | st.floats(-100, -1e-4)
LENGTHS = [(unit, text) for unit, texts in SPELLINGS.items() for text in texts]


@HARD
@given(st.sampled_from(LENGTHS), st.sampled_from(LENGTHS), st.floats(0.1, 50), st.floats(0.1, 50))
def test_the_spacing_does_not_depend_on_the_spelling_of_units(of_y, of_x, y_km, x_km):
    axes = {}
    for name, (unit, text), size, count in (("y", of_y, y_km, 4), ("x", of_x, x_km, 3)):
        assert unit_of(text) == unit
        axes[name] = (name, np.arange(count) * size * 1000 / METRES_PER_UNIT[unit], {"units": text})
    assert spacing_km(xr.Dataset(coords=axes)) == pytest.approx((y_km, x_km))


@HARD
@given(st.lists(WHOLE, min_size=1, max_size=40), WHOLE, WHOLE, SCALES, st.floats(-1000, 1000), st.booleans())
def test_limits_of_packed_data_keep_what_they_keep_packed(packed, one, other, scale, offset, as_range):
    low, high = np.int16(min(one, other)), np.int16(max(one, other))
    encoding = {"dtype": np.dtype("int16"), "scale_factor": scale, "add_offset": offset, "_FillValue": np.int16(-32768)}
    declared = {"valid_range": np.array([low, high])} if as_range else {"valid_min": low, "valid_max": high}
    limits = limits_of(declared, encoding)
    inside = np.array([low <= number <= high for number in packed])
    margin = 1 + 1e-6 * max(map(abs, filter(None, limits)), default=0) / abs(scale)  # of float32, in packed steps
    beside = np.array([min(abs(number - int(low)), abs(number - int(high))) <= margin for number in packed])
    values, refused = without_impossible(np.array(packed)[:, None] * scale + offset, limits)
    np.testing.assert_array_equal(np.isfinite(values[:, 0])[~beside], inside[~beside])
    assert np.isfinite(values[:, 0])[inside].all()
    np.testing.assert_array_equal(refused, np.isnan(values[:, 0]))


@HARD
@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=60))
def test_whatever_is_read_is_finite_or_missing_and_every_refusal_is_counted(numbers):
    read = np.array(numbers)
    values, refused = without_impossible(read[:, None])
    possible = np.abs(read) < IMPOSSIBLE
    np.testing.assert_array_equal(np.isfinite(values[:, 0]), possible)
    np.testing.assert_array_equal(values[possible, 0], read[possible].astype(np.float32))
    np.testing.assert_array_equal(refused == 1, ~possible & ~np.isnan(read))


@HARD
@given(st.sampled_from(sorted(RATES)), st.floats(60, 864_000), st.floats(0, 1e6))
def test_a_rate_over_its_period_is_the_accumulation(units, seconds, amount):
    attributes, factor = as_rate({"units": units, "standard_name": "precipitation_amount"}, seconds)
    a_second = {"mm h-1": 1 / 3600, "W m-2": 1.0}[attributes["units"]] * amount * factor
    in_own = {"m": 1e-3, "m of water equivalent": 1e-3}.get(units, 1.0)
    assert a_second * seconds * in_own == pytest.approx(amount)
    assert "standard_name" not in attributes


@HARD
@given(st.floats(-720, 720), st.floats(0.01, 30), st.integers(2, 40), st.booleans())
def test_longitudes_keep_their_spacing_wherever_they_begin(start, step, count, westwards):
    step = min(step, 350 / count) * (-1 if westwards else 1)
    steady = start + step * np.arange(count)
    wrapped = (steady + 180) % 360 - 180
    axis = check_axis("a.nc", "x", xr.Variable("x", wrapped, {"units": "degrees_east"}))
    np.testing.assert_allclose(np.diff(axis.values), step, atol=1e-9)
    np.testing.assert_allclose((axis.values - steady + 180) % 360, 180, atol=1e-6)


@HARD
@given(st.integers(3, 30), st.floats(0.1, 10), st.data())
def test_an_axis_with_one_centre_out_of_place_is_refused(count, step, data):
    centres = 5 + step * np.arange(count)
    place = data.draw(st.integers(1, count - 2))
    wrong = data.draw(
        st.sampled_from([np.nan, np.inf, centres[place - 1], centres[place] + 0.7 * step, centres[0] - step])
    )
    centres[place] = wrong
    with pytest.raises(InputError, match=r"^a.nc: "):
        check_axis("a.nc", "y", xr.Variable("y", centres, {"units": "km"}))


@HARD
@given(st.floats(-89, 80), st.floats(-180, 180), st.floats(0.01, 1), st.integers(1, 4), st.integers(4, 12))
def test_coarse_latitudes_and_longitudes_lie_between_those_of_their_cells(south, west, step, coarsen, cells):
    j, i = np.meshgrid(np.arange(cells), np.arange(cells), indexing="ij")
    latitude, longitude = south + 0.5 * step * j, (west + step * i + 0.1 * step * j + 180) % 360 - 180
    axes = {axis: (axis, np.arange(float(cells)), {"units": "1"}) for axis in ("y", "x")}
    both = {"latitude": (("y", "x"), latitude), "longitude": (("y", "x"), longitude)}
    field = (("time", "y", "x"), np.empty((0, cells, cells), np.float32), {"units": "K"})
    coarse = target_grid(xr.Dataset({"v": field}, {**axes, **both}), None, coarsen, "here")
    middle = (coarsen - 1) / 2
    first = np.arange(cells // coarsen) * coarsen + middle
    np.testing.assert_allclose(coarse.latitude, np.repeat((south + 0.5 * step * first)[:, None], first.size, 1))
    expected = west + step * first[None] + 0.1 * step * first[:, None]
    np.testing.assert_allclose((coarse.longitude - expected + 180) % 360, 180, atol=1e-6)
