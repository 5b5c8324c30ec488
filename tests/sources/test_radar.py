import gzip
from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source, open_source
from tests.sources import archives

ALL = slice(None)


def read(options: RadarOptions, frame: int = 0):
    part = open_source(options).segments()[frame]
    return part.read(np.array([0]), ALL, ALL)["rain_rate"]


def knmi(folder: Path) -> RadarOptions:
    return RadarOptions(path=str(folder), format="knmi")


def test_knmi_hundredths_of_mm_in_5_minutes_become_mm_per_hour(tmp_path):
    archives.write_knmi(tmp_path / "a.h5", "2010-08-26 00:05")
    rate = read(knmi(tmp_path))
    # 7 counts = 0.07 mm in 5 minutes = 0.84 mm/h; 120 counts = 14.4 mm/h; 65535 is outside
    np.testing.assert_allclose(rate.values, [[[0, 0.84, np.nan], [14.4, 0.12, 0]]], rtol=1e-6)
    assert rate.dtype == np.float32
    assert rate.attrs["units"] == "mm h-1"
    assert rate.time.values[0] == np.datetime64("2010-08-26T00:05")  # end of the accumulation


def test_knmi_grid_has_its_projection_in_metres_and_coordinates_in_km(tmp_path):
    archives.write_knmi(tmp_path / "a.h5", "2010-08-26 00:05")
    grid = open_source(knmi(tmp_path)).grid()
    np.testing.assert_allclose(grid.y, [-3650.5, -3651.5])
    np.testing.assert_allclose(grid.x, [0.5, 1.5, 2.5])
    assert grid.y.attrs == {"standard_name": "projection_y_coordinate", "units": "km"}
    assert grid.spatial_ref.attrs["grid_mapping_name"] == "polar_stereographic"
    assert grid.spatial_ref.attrs["semi_major_axis"] == 6378137.0
    assert grid.rain_rate.attrs["grid_mapping"] == "spatial_ref"
    assert grid.rain_rate.attrs["standard_name"] == "rainfall_rate"
    assert grid.rain_rate.attrs["valid_min"] == 0.0


def test_bom_mm_in_10_minutes_become_mm_per_hour(tmp_path):
    archives.write_bom(tmp_path / "a.nc", "2020-10-31 00:10")
    options = RadarOptions(path=str(tmp_path), format="bom")
    # 20 counts = 1 mm in 10 minutes = 6 mm/h
    np.testing.assert_allclose(read(options).values, [[[0, 6, np.nan], [0.9, 0, 0.3]]], rtol=1e-6)
    grid = open_source(options).grid()
    assert grid.spatial_ref.attrs["grid_mapping_name"] == "albers_conical_equal_area"
    assert grid.x.attrs["units"] == "km"
    assert read(options).time.values[0] == np.datetime64("2020-10-31T00:10")


@pytest.mark.parametrize(("z_r", "a", "b"), [(None, 223, 1.53), ((200, 1.6), 200, 1.6)])
def test_fmi_reflectivity_becomes_rain_by_z_r(tmp_path, z_r, a, b):
    archives.write_fmi(tmp_path / "a.pgm.gz", "201609281445")
    rate = read(RadarOptions(path=str(tmp_path), format="fmi", z_r=z_r)).values[0]
    # bytes 64, 104, 144 are 0, 20 and 40 dBZ
    expected = [[0, np.nan, (1 / a) ** (1 / b)], [(100 / a) ** (1 / b), (10_000 / a) ** (1 / b), 0]]
    np.testing.assert_allclose(rate, expected, rtol=1e-5)


def test_values_that_are_none_are_counted(tmp_path):
    counts = np.array([[0, 10, -3], [20, -1, -2]], np.int16)  # -1 is the fill value
    archives.write_bom(tmp_path / "a.nc", "2020-10-31 06:00", counts)
    read = (
        open_source(RadarOptions(path=str(tmp_path), format="bom"))
        .segments()[0]
        .read(np.array([0]), slice(0, 2), slice(0, 3))
    )
    np.testing.assert_allclose(read.rain_rate.values[0], [[0, 3, np.nan], [6, np.nan, np.nan]], rtol=1e-6)
    assert read.rain_rate_refused.values.tolist() == [2]


def test_fmi_first_row_lies_in_the_north(tmp_path):
    archives.write_fmi(tmp_path / "a.pgm.gz", "201609281445")
    grid = open_source(RadarOptions(path=str(tmp_path), format="fmi")).grid()
    assert np.diff(grid.y.values) == pytest.approx(-1000)
    assert grid.spatial_ref.attrs["straight_vertical_longitude_from_pole"] == 25


def test_a_part_reads_the_wanted_cells_alone(tmp_path):
    archives.write_knmi(tmp_path / "a.h5", "2010-08-26 00:05")
    part = open_source(knmi(tmp_path)).segments()[0]
    rate = part.read(np.array([0]), slice(1, 2), slice(0, 2))["rain_rate"].values
    np.testing.assert_allclose(rate, [[[14.4, 0.12]]], rtol=1e-6)


def test_look_counts_missing_frames(tmp_path):
    for minute in ("00:05", "00:10", "00:25"):
        archives.write_knmi(tmp_path / f"{minute}.h5", f"2010-08-26 {minute}")
    summary = inspect_source(knmi(tmp_path))
    assert (summary.time_axis.times.size, summary.time_axis.present.sum()) == (5, 3)
    assert summary.variables == {"rain_rate": "mm h-1"}
    assert (summary.grid_shape, summary.spacing, summary.spacing_units) == ((2, 3), (1.0, 1.0), "km")
    assert (summary.step, summary.duplicates) == (np.timedelta64(5, "m"), 0)
    assert summary.time_axis.times[-1] == np.datetime64("2010-08-26T00:25")


def two_good(folder: Path) -> Path:
    archives.write_knmi(folder / "a.h5", "2010-08-26 00:05")
    return archives.write_knmi(folder / "b.h5", "2010-08-26 00:10")


def error_of(options: RadarOptions) -> str:
    with pytest.raises(InputError) as caught:
        inspect_source(options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_truncated_hdf5_is_named(tmp_path):
    broken = two_good(tmp_path)
    broken.write_bytes(broken.read_bytes()[:-200])
    assert f"{broken}: truncated file, expected a KNMI composite" in error_of(knmi(tmp_path))


def test_text_is_no_hdf5(tmp_path):
    broken = two_good(tmp_path)
    broken.write_text("not found")
    assert f"{broken}: no HDF5 file, expected a KNMI composite" in error_of(knmi(tmp_path))


def test_other_hdf5_is_no_knmi(tmp_path):
    archives.write_bom(tmp_path / "a.h5", "2020-10-31 00:10")
    assert "'image1' doesn't exist" in error_of(knmi(tmp_path))


def test_mixed_grids_are_refused(tmp_path):
    two_good(tmp_path)
    archives.write_knmi(tmp_path / "c.h5", "2010-08-26 00:15", np.zeros((2, 4), np.uint16))
    message = error_of(knmi(tmp_path))
    assert "c.h5: the grid is 2 x 4 cells" in message
    assert "expected 2 x 3 cells, y -3650.5 to -3651.5 km, x 0.5 to 2.5 km, polar_stereographic" in message


def test_mixed_units_are_refused(tmp_path):
    two_good(tmp_path)
    archives.write_knmi(tmp_path / "c.h5", "2010-08-26 00:15", quantity="REFLECTIVITY_[DBZ]")
    assert "image_geo_parameter is 'REFLECTIVITY_[DBZ]', expected 'ACCUMULATED_PRECIPITATION_[MM]'" in error_of(
        knmi(tmp_path)
    )
    archives.write_bom(tmp_path / "d.nc", "2020-10-31 00:10", units="inch")
    assert "'precipitation' has units 'inch', expected kg m-2" in error_of(
        RadarOptions(path=str(tmp_path), format="bom")
    )


@pytest.mark.parametrize("cut", [-3, -40])
def test_truncated_gzip_is_named(tmp_path, cut):
    path = archives.write_fmi(tmp_path / "a.pgm.gz", "201609281445")
    path.write_bytes(path.read_bytes()[:cut])
    assert f"{path}: truncated file" in error_of(RadarOptions(path=str(tmp_path), format="fmi"))


def test_image_with_too_few_bytes_is_truncated(tmp_path):
    path = tmp_path / "a.pgm.gz"
    path.write_bytes(gzip.compress(archives.fmi_bytes("201609281445")[:-2]))
    assert "truncated file, 4 image bytes, expected 6" in error_of(RadarOptions(path=str(tmp_path), format="fmi"))


def test_no_file_matches(tmp_path):
    message = error_of(knmi(tmp_path))
    assert message == (
        f"source.path is '{tmp_path}': nothing found, expected files named *.h5 or *.hdf5 or *.hdf; correct the path"
    )
    assert "nothing found, expected a file, folder or glob" in error_of(knmi(tmp_path / "*.h5"))


def test_period_without_frames_is_named(tmp_path):
    two_good(tmp_path)
    options = knmi(tmp_path).model_copy(
        update={"period": (np.datetime64("2011-01-01").item(), np.datetime64("2011-01-02").item())}
    )
    message = error_of(options)
    assert "source.period is [2011-01-01 00:00:00, 2011-01-02 00:00:00]: no frame inside" in message
    assert "from 2010-08-26 00:05:00 to 2010-08-26 00:10:00" in message
