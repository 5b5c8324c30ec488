import h5py
import numpy as np
import pytest

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source, open_source
from fieldcast.pipeline.sources.contents import radar_format
from tests.sources import archives

MOMENT = "2024-06-01 12:15"
NAN = np.nan


def odim(folder, **more) -> RadarOptions:
    return RadarOptions.model_validate({"path": str(folder), "format": "odim", **more})


def read(options: RadarOptions) -> np.ndarray:
    return open_source(options).segments()[0].read(np.array([0]), slice(None), slice(None))["rain_rate"].values[0]


@pytest.mark.parametrize("layout", [2018, 2024])
@pytest.mark.parametrize(
    ("quantity", "factor"),
    [("RATE", 1.0), ("ACRR", 4.0)],  # mm in a quarter of an hour
)
def test_amounts_of_both_layouts(tmp_path, layout, quantity, factor):
    """Value = .5 count - 10; counts of the second quantity are one higher, but for nodata and undetect."""
    archives.write_odim(tmp_path / "a.hdf", MOMENT, quantities=("RATE", "ACRR"), layout=layout)
    more = 0.5 * (quantity == "ACRR")
    expected = [[0, NAN, 10 + more], [NAN, 35 + more, 0]]  # -9.5 mm/h is none
    np.testing.assert_allclose(read(odim(tmp_path, quantity=quantity)), factor * np.array(expected), rtol=1e-6)


@pytest.mark.parametrize(("z_r", "a", "b"), [(None, 200, 1.6), ((316, 1.5), 316, 1.5)])
def test_reflectivity_becomes_rain_by_z_r(tmp_path, z_r, a, b):
    archives.write_odim(tmp_path / "a.hdf", MOMENT, quantities=("DBZH",))
    rate = read(odim(tmp_path, quantity="DBZH", z_r=z_r))
    expected = [[0, NAN, (10 / a) ** (1 / b)], [(10**-0.95 / a) ** (1 / b), (10**3.5 / a) ** (1 / b), 0]]
    np.testing.assert_allclose(rate, expected, rtol=1e-5)


def test_packing_that_a_file_leaves_out_is_none(tmp_path):
    """RMI writes floats with NaN outside the radars' range, and no packing."""
    archives.write_odim(tmp_path / "a.hdf", MOMENT, np.array([[0, np.nan], [1.5, 3]], np.float32), packing={})
    np.testing.assert_array_equal(read(odim(tmp_path)), [[0, NAN], [1.5, 3]])


def test_grid_and_times(tmp_path):
    archives.write_odim(tmp_path / "a.hdf", MOMENT)
    archives.write_odim(tmp_path / "b.hdf", "2024-06-01 12:30")
    info = inspect_source(odim(tmp_path))
    assert info.time_axis.times.tolist() == np.array(["2024-06-01T12:15", "2024-06-01T12:30"], "M8[ns]").tolist()
    np.testing.assert_allclose(info.grid.x, [401_000, 403_000, 405_000])
    np.testing.assert_allclose(info.grid.y, [-998_500, -999_500])  # the first row lies in the north
    assert info.grid.x.attrs == {"standard_name": "projection_x_coordinate", "units": "m"}
    grid = open_source(odim(tmp_path)).grid()
    assert grid.spatial_ref.attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"


def test_a_sum_stands_at_the_end_of_its_period(tmp_path):
    path = archives.write_odim(tmp_path / "a.hdf", MOMENT, quantities=("RATE", "ACRR"))
    with h5py.File(path, "r+") as file:
        file["what"].attrs["time"] = np.bytes_("121000")
    for quantity, time in (("RATE", "12:10"), ("ACRR", "12:15")):
        (segment,) = open_source(odim(tmp_path, quantity=quantity)).segments()
        assert segment.times[0] == np.datetime64(f"2024-06-01T{time}")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"where": {"UR_lon": 9.0}}, "UR of where is at x "),
        ({"where": {"xsize": 7}}, "where has ysize, xsize (2, 7), the array 2, 3"),
        ({"where": {"projdef": np.bytes_("+proj=longlat")}}, "expected a projection in metres"),
        ({"where": {"projdef": np.bytes_("round")}}, "where/projdef: Invalid projection: round"),
        ({"quantities": ("DBZH", "TH")}, "no quantity RATE, found DBZH, TH: set source.quantity"),
        ({"packing": {"gain": np.bytes_("much")}}, "could not convert string to float: 'much'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, changes, expected):
    path = archives.write_odim(tmp_path / "a.hdf", MOMENT, **changes)
    with pytest.raises(InputError) as caught:
        read(odim(tmp_path))
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)


def test_scans_are_no_composites(tmp_path):
    path = archives.write_odim(tmp_path / "a.hdf", MOMENT)
    with h5py.File(path, "r+") as file:
        file["what"].attrs["object"] = np.bytes_("PVOL")
    with pytest.raises(InputError, match="what/object is 'PVOL', expected COMP or IMAGE: take a composite"):
        inspect_source(odim(tmp_path))


def test_a_sum_over_no_time_is_refused(tmp_path):
    path = archives.write_odim(tmp_path / "a.hdf", MOMENT, quantities=("ACRR",))
    with h5py.File(path, "r+") as file:
        file["dataset1/what"].attrs["starttime"] = np.bytes_("121500")
    with pytest.raises(InputError, match="expected a start before its end"):
        read(odim(tmp_path, quantity="ACRR"))


@pytest.mark.parametrize("quantity", [None, "ACRR", "DBZH"])
def test_an_archive_tells_its_quantity(tmp_path, quantity):
    archives.write_odim(tmp_path / "a.h5", MOMENT, quantities=("QIND", quantity or "RATE"))
    assert radar_format(str(tmp_path)) == odim(tmp_path, **({"quantity": quantity} if quantity else {}))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"format": "knmi", "quantity": "RATE"}, "quantity is for format odim, not for knmi"),
        ({"format": "odim", "z_r": (200, 1.6)}, "z_r is for reflectivity"),
    ],
)
def test_options_without_effect_are_refused(content, expected):
    with pytest.raises(ValueError, match=expected):
        RadarOptions.model_validate({"path": "x", **content})
