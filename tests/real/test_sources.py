import hashlib
from pathlib import Path

import numpy as np
import pyproj
import pytest

from fieldcast.pipeline.config.sources import GriddedOptions, MovingMnistOptions, RadarOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source, open_source

ALL = slice(None)


def radar(archive: Path, kind: str, **more: object) -> RadarOptions:
    return RadarOptions.model_validate({"path": str(archive / "radar" / kind), "format": kind, **more})


def first_frame(options: RadarOptions, part: int = 0) -> np.ndarray:
    return open_source(options).segments()[part].read(np.array([0]), ALL, ALL)["rain_rate"].values[0]


@pytest.mark.parametrize(
    ("kind", "shape", "frames", "step", "first"),
    [
        ("knmi", (765, 700), 92, 5, "2010-08-26T00:00"),
        ("bom", (512, 512), 144, 10, "2020-10-31T00:00"),
        ("fmi", (1226, 760), 40, 5, "2016-09-28T14:45"),
    ],
)
def test_look_at_radar_archives(archive, kind, shape, frames, step, first):
    summary = inspect_source(radar(archive, kind))
    assert summary.grid_shape == shape
    assert (summary.time_axis.times.size, summary.time_axis.present.sum()) == (frames, frames)
    assert summary.step == np.timedelta64(step, "m")
    assert summary.time_axis.times[0] == np.datetime64(first)
    assert summary.variables == {"rain_rate": "mm h-1"}


def test_knmi_value_by_hand(archive):
    rate = first_frame(radar(archive, "knmi"))
    assert np.isnan(rate).mean() == pytest.approx(0.7437, abs=1e-4)
    assert np.nanmax(rate) == pytest.approx(72 * 0.01 * 12)  # the largest count of the frame is 72


def test_knmi_corners_agree_with_the_file(archive):
    """The files give the corners of the image in degrees: 49.362 N 0 E, 55.974 N 0 E, 55.389 N 10.856 E, …."""
    grid = open_source(radar(archive, "knmi")).grid()
    project = pyproj.Proj(pyproj.CRS.from_wkt(grid.spatial_ref.attrs["crs_wkt"]))
    left, bottom = (value / 1000 for value in project(0.0, 49.362))
    right, top = (value / 1000 for value in project(10.856, 55.389))
    assert [left, right] == pytest.approx([0, 700], abs=0.2)
    assert [float(grid.x[0]), float(grid.x[-1])] == [0.5, 699.5]
    assert bottom == pytest.approx(float(grid.y[-1]) - 0.5, abs=0.2)
    assert top == pytest.approx(float(grid.y[0]) + 0.5, abs=0.2)


def test_fmi_corners_agree_with_the_file(archive):
    grid = open_source(radar(archive, "fmi")).grid()
    project = pyproj.Proj(pyproj.CRS.from_wkt(grid.spatial_ref.attrs["crs_wkt"]))
    right, top = project(34.903, 69.005)
    assert right == pytest.approx(float(grid.x[-1]) + 500, abs=500)
    assert top == pytest.approx(float(grid.y[0]) + 500, abs=500)


def test_bom_and_fmi_rain_is_plausible(archive):
    bom = first_frame(radar(archive, "bom"), part=40)
    assert 20 < np.nanmax(bom) < 300
    fmi = first_frame(radar(archive, "fmi"))
    assert 5 < np.nanmax(fmi) < 300
    assert 0.05 < np.isnan(fmi).mean() < 0.9
    assert np.nanmin(fmi) == 0


def test_era5_grib(archive):
    options = GriddedOptions(path=str(archive / "era5" / "*.grib"), variables=["t2m"])
    before = sorted((archive / "era5").iterdir())
    summary = inspect_source(options)
    assert summary.time_axis.present.sum() == 744
    assert (summary.step, summary.grid_shape) == (np.timedelta64(1, "h"), (33, 49))
    assert summary.variables == {"t2m": "K"}
    part = open_source(options).segments()[0]
    field = part.read(np.arange(700, 703), ALL, ALL)["t2m"].values
    assert 260 < field.min() < field.max() < 295
    grid = open_source(options).grid()
    assert (grid.y.attrs["units"], float(grid.y[0]), float(grid.x[0])) == ("degrees_north", 58.0, -10.0)
    assert sorted((archive / "era5").iterdir()) == before  # no index files beside the data


def test_unknown_grib_variable_names_those_found(archive):
    with pytest.raises(InputError, match="no variable 'tp', found t2m"):
        inspect_source(GriddedOptions(path=str(archive / "era5"), variables=["tp"]))


def test_truncated_grib_is_named(archive, tmp_path):
    whole = next((archive / "era5").glob("*.grib")).read_bytes()
    (tmp_path / "a.grib").write_bytes(whole[:-1000])
    with pytest.raises(InputError, match=r"a\.grib: truncated file"):
        inspect_source(GriddedOptions(path=str(tmp_path), variables=["t2m"]))


def test_radar_files_of_another_kind_are_named(archive):
    with pytest.raises(InputError, match="expected a KNMI composite"):
        inspect_source(RadarOptions(path=str(archive / "radar" / "bom" / "**" / "*.nc"), format="knmi"))


def test_moving_mnist_from_the_real_digits(archive):
    train, test = (archive / "mnist" / f"{name}-images-idx3-ubyte.gz" for name in ("train", "t10k"))
    options = MovingMnistOptions(
        train_images=str(train),
        test_images=str(test),
        test_sha256=hashlib.sha256(test.read_bytes()).hexdigest(),
        sequences_train=20,
        sequences_test=20,
    )
    parts = open_source(options).segments()
    film = np.stack([part.read(np.arange(20), ALL, ALL)["intensity"].values for part in parts])
    assert film.min() == 0
    assert film.max() == 1
    assert 0.03 < film.mean() < 0.07  # two digits cover about 5 % of the canvas's range
    error = ((film[:, 10:] - film[:, 9:10]) ** 2).sum(axis=(2, 3)).mean()
    assert 150 < error < 350  # persistence, summed over a frame's pixels
