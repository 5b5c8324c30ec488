"""Quantities come in one unit: the same field in any unit is the same store."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions, IngestOptions
from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.ingest import ingest
from fieldcast.pipeline.sources import inspect_source
from fieldcast.pipeline.sources.units import in_si
from tests.sources import gribs

TIMES = pd.date_range("2024-06-01T01:00", periods=5, freq="h")
RATE = np.random.default_rng(1).gamma(0.5, 4, (5, 3, 7))  # mm/h
BOUNDS = np.stack([TIMES - pd.Timedelta(hours=1), TIMES], axis=1)


def field(values: np.ndarray, name: str = "rain", **attributes: object) -> xr.Dataset:
    coords = {
        "time": ("time", TIMES, {"bounds": "time_bnds"}),
        "lat": ("lat", 50.0 - np.arange(3), {"units": "degrees_north"}),
        "lon": ("lon", 5.0 + np.arange(7), {"units": "degrees_east"}),
    }
    data = {name: (("time", "lat", "lon"), values, attributes), "time_bnds": (("time", "bnds"), BOUNDS)}
    dataset = xr.Dataset(data, coords)
    for each in ("time", "time_bnds"):
        dataset[each].encoding = {"units": "hours since 2024-06-01", "dtype": "int64"}
    return dataset


def ingested(tmp_path, dataset: xr.Dataset, name: str = "rain", **options: object) -> xr.Dataset:
    dataset.to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    source = {"path": str(tmp_path / "a.nc"), "variables": [name], **options}
    ingest(GriddedOptions.model_validate(source), IngestOptions(), tmp_path / "o.zarr")
    return store.open_observations(tmp_path / "o.zarr").load()


@pytest.mark.parametrize(
    ("factor", "attributes", "options"),
    [
        (1, {"units": "mm h-1"}, {}),
        (1, {"units": "mm/hr"}, {}),
        (24, {"units": "mm day-1"}, {}),
        (1 / 3600, {"units": "kg m-2 s-1", "standard_name": "precipitation_flux"}, {}),
        (1 / 3600, {"units": "kg m**-2 s**-1"}, {}),
        (1 / 3600, {"units": "mm s^-1"}, {}),
        (1 / 3.6e6, {"units": "m s-1", "standard_name": "rainfall_rate"}, {}),
        (1 / 3.6e6, {"units": "m/s", "long_name": "Total precipitation"}, {}),
        (1 / 25.4, {"units": "in h-1"}, {}),
        (1, {"units": "mm", "cell_methods": "time: sum"}, {}),
        (1, {"units": "kg m-2", "cell_methods": "time: sum"}, {}),
        (1e-3, {"units": "m"}, {"accumulated_minutes": {"rain": 60}}),
        (1 / 3600, {}, {"units": "kg m-2 s-1"}),
    ],
)
def test_the_same_rain_in_each_unit_is_the_same_store(tmp_path, factor, attributes, options):
    observed = ingested(tmp_path, field(RATE * factor, **attributes, valid_min=0.0), **options)
    assert observed.rain.attrs["units"] == "mm h-1"
    assert observed.rain.attrs["valid_min"] == 0
    np.testing.assert_allclose(observed.rain.values, RATE, rtol=1e-6)
    np.testing.assert_array_equal(observed.time, TIMES)


@pytest.mark.parametrize("z_r", [(200.0, 1.6), (316.0, 1.5)])
def test_reflectivity_is_rain_by_a_stated_z_r(tmp_path, z_r):
    dbz = 10 * np.log10(z_r[0] * RATE ** z_r[1])
    dataset = field(dbz, units="dBZ", standard_name="equivalent_reflectivity_factor")
    observed = ingested(tmp_path, dataset, z_r=z_r)
    np.testing.assert_allclose(observed.rain.values, RATE, rtol=1e-5)
    assert {key: observed.rain.attrs.get(key) for key in ("units", "standard_name")} == {
        "units": "mm h-1",
        "standard_name": None,
    }


def test_reflectivity_without_one_stays_what_it_is(tmp_path):
    observed = ingested(tmp_path, field(RATE, units="dBZ"))
    assert observed.rain.attrs["units"] == "dBZ"
    np.testing.assert_array_equal(observed.rain.values, RATE.astype(np.float32))


@pytest.mark.parametrize(
    ("units", "value", "canonical", "expected"),
    [
        ("degC", -3.5, "K", 269.65),
        ("degF", 14.0, "K", 263.15),
        ("kelvin", 280.0, "K", 280.0),
        ("hPa", 1013.25, "Pa", 101_325.0),
        ("km h-1", 36.0, "m s-1", 10.0),
        ("knots", 10.0, "m s-1", 5.144444),
        ("m s**-1", 7.0, "m s-1", 7.0),
        ("W m-2", 340.0, "W m-2", 340.0),
        ("%", 55.0, "%", 55.0),
        ("degrees of frost", 2.0, "degrees of frost", 2.0),
    ],
)
def test_other_quantities(tmp_path, units, value, canonical, expected):
    dataset = field(np.full(RATE.shape, value), "v", units=units, valid_max=value)
    observed = ingested(tmp_path, dataset, "v")
    assert observed.v.attrs["units"] == canonical
    np.testing.assert_allclose(observed.v.values, expected, rtol=1e-6)
    assert observed.v.attrs["valid_max"] == pytest.approx(expected)


def test_limits_hold_for_the_values_of_the_file(tmp_path):
    values = np.full(RATE.shape, 20.0)
    values[0, 0, 0] = 60.0  # degC, above the limit
    observed = ingested(tmp_path, field(values, "t", units="degC", valid_min=-40.0, valid_max=50.0), "t")
    assert np.isnan(observed.t.values[0, 0, 0])
    assert observed.t_refused.values.tolist() == [1, 0, 0, 0, 0]
    np.testing.assert_allclose(observed.t.values[1:], 293.15)
    assert (observed.t.attrs["valid_min"], observed.t.attrs["valid_max"]) == pytest.approx((233.15, 323.15))


def test_files_of_one_archive_may_have_units_of_their_own(tmp_path):
    kelvins = field(RATE + 280, "t", units="K")
    kelvins.isel(time=slice(0, 2)).to_netcdf(tmp_path / "1.nc", engine="h5netcdf")
    celsius = field(RATE + 280 - 273.15, "t", units="degC")
    celsius.isel(time=slice(2, 5)).to_netcdf(tmp_path / "2.nc", engine="h5netcdf")
    source = GriddedOptions(path=str(tmp_path), variables=["t"])
    ingest(source, IngestOptions(), tmp_path / "o.zarr")
    np.testing.assert_allclose(store.open_observations(tmp_path / "o.zarr").t.values, RATE + 280, rtol=1e-6)


def test_grib_rain_in_kilograms_a_second(tmp_path):
    keys = {
        **{"discipline": 0, "parameterCategory": 1, "parameterNumber": 7, "typeOfFirstFixedSurface": 1},
        **{"gridType": "regular_ll", "Ni": 3, "Nj": 2, **gribs.DAY},
        **{"latitudeOfFirstGridPointInDegrees": 50, "latitudeOfLastGridPointInDegrees": 49},
        **{"longitudeOfFirstGridPointInDegrees": 5, "longitudeOfLastGridPointInDegrees": 7},
        **{"iDirectionIncrementInDegrees": 1, "jDirectionIncrementInDegrees": 1},
    }
    rates = np.array([[0, 1, 2.5], [10, 0.5, 40]])
    gribs.write(tmp_path / "a.grib2", [({**keys, "dataTime": 100 * hour}, rates / 3600) for hour in range(3)])
    source = GriddedOptions(path=str(tmp_path / "a.grib2"), variables=["prate"])
    ingest(source, IngestOptions(), tmp_path / "o.zarr")
    observed = store.open_observations(tmp_path / "o.zarr").prate
    assert observed.attrs["units"] == "mm h-1"
    np.testing.assert_allclose(observed.values[2], rates, atol=0.01)  # packed


@pytest.mark.parametrize(
    ("attributes", "options", "expected"),
    [
        ({"units": "mm/3h", "long_name": "Rain rate"}, {}, "'v' is rain by its name, in unknown units 'mm/3h'"),
        ({"units": "mm", "long_name": "Total precipitation"}, {}, "'v' is a sum over time, and the file does not tell"),
        ({"units": "K"}, {"z_r": [200, 1.6]}, "source.z_r is for reflectivity in dBZ, the variables are in K"),
    ],
)
def test_what_is_none_of_these_is_refused_by_name(tmp_path, attributes, options, expected):
    field(RATE, "v", **attributes).to_netcdf(tmp_path / "a.nc", engine="h5netcdf")
    source = {"path": str(tmp_path / "a.nc"), "variables": ["v"], **options}
    with pytest.raises(InputError) as caught:
        inspect_source(GriddedOptions.model_validate(source))
    assert str(caught.value).startswith(f"{tmp_path / 'a.nc'}: {expected}")


@pytest.mark.parametrize("name", ["precipitation_type", "precipitation_probability", "total_column_rain_water"])
def test_not_all_that_is_named_after_rain_is_an_amount(tmp_path, name):
    units = {"precipitation_type": "(Code table 4.201)", "precipitation_probability": "1"}.get(name, "kg m-2")
    observed = ingested(tmp_path, field(RATE, name, units=units), name)
    assert observed[name].attrs["units"] == units


@pytest.mark.parametrize("units", ["mm", "mm/3h", "1"])
def test_whoever_gives_the_units_knows_what_it_is(tmp_path, units):
    observed = ingested(tmp_path, field(RATE, "precipitation", units="mm"), "precipitation", units=units)
    assert observed.precipitation.attrs["units"] == units
    np.testing.assert_array_equal(observed.precipitation.values, RATE.astype(np.float32))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("kg m-2 s-1", "kg/m2/s"),
        ("kg m-2 s-1", "kg.m-2.s-1"),
        ("m s-1", "m/s"),
        ("mm h-1", "mm hr**-1"),
        ("Pa", "kg m-1 s-2"),
    ],
)
def test_spellings(one, other):
    assert in_si(one) == in_si(other)
    assert in_si(one) is not None


@pytest.mark.parametrize("text", ["", "1", "%", "m of water equivalent", "3 mm", "degrees_north", "m-", "(m)"])
def test_what_is_no_product_of_units(text):
    assert in_si(text) is None
