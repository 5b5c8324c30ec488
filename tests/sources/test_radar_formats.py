"""Formats of single weather services: RADOLAN, MeteoSwiss and MRMS, in small files by hand."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from fieldcast.pipeline.config.sources import RadarOptions
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources import inspect_source, open_source
from fieldcast.pipeline.sources.contents import radar_format
from tests.sources import archives

NAN = np.nan
MOMENT = "2024-06-01 12:50"


def read(folder: Path, kind: str, y: slice = slice(0, 2), x: slice = slice(0, 7)) -> tuple[np.ndarray, int]:
    """Return the rain rate of some cells, and how many of them were refused."""
    source = open_source(RadarOptions.model_validate({"path": str(folder), "format": kind}))
    frame = source.segments()[0].read(np.array([0]), y, x)
    return frame["rain_rate"].values[0], int(frame["rain_rate_refused"].values[0])


def refusal(folder: Path, kind: str) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, kind)
    return str(caught.value)


@pytest.mark.parametrize("name", ["rw-bin", "rw-bin.gz"])
def test_flags_of_radolan(tmp_path, name):
    """No measurement and clutter are missing, a radar further away counts, a negative amount is refused."""
    archives.write_radolan(tmp_path / name, MOMENT)
    rate, refused = read(tmp_path, "radolan", x=slice(0, 3))
    np.testing.assert_allclose(rate, [[NAN, NAN, 1.0], [2.5, NAN, 0]], rtol=1e-6)
    assert refused == 1


def test_radolan_in_five_minutes_by_its_own_precision(tmp_path):
    archives.write_radolan(tmp_path / "yw-bin", MOMENT, (1100, 900), "YW", minutes=5, digits=2)
    rate, _ = read(tmp_path, "radolan", slice(1, 2), slice(0, 1))
    np.testing.assert_allclose(rate, [[3.0]], rtol=1e-6)  # .25 mm in five minutes
    options = RadarOptions(path=str(tmp_path), format="radolan")
    grid = open_source(options).grid()
    np.testing.assert_allclose([grid.x[0], grid.y[0]], [-442_962.2, -4_758_144.7], atol=0.5)  # half a cell inside
    assert open_source(options).segments()[0].times[0] == np.datetime64("2024-06-01T12:50")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"product": "RX"}, "product RX, expected RW, RY, YW: keep archives of a product apart"),
        ({"shape": (460, 460)}, "460 x 460 cells, expected one of the grids 900 x 900, 1100 x 900"),
        ({"minutes": 0}, "an accumulation over 0 minutes"),
    ],
)
def test_other_radolan_is_named(tmp_path, changes, expected):
    path = archives.write_radolan(tmp_path / "a-bin", MOMENT, **changes)
    assert refusal(tmp_path, "radolan").startswith(f"{path}: {expected}")


def test_cut_radolan_is_named(tmp_path):
    path = archives.write_radolan(tmp_path / "a-bin", MOMENT)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-2])
    assert f"{path}: {size - 2} bytes for 900 x 900 cells, the header says {size}" in refusal(tmp_path, "radolan")
    path.write_bytes(b"RW" + bytes(100))
    assert "no header of RADOLAN" in refusal(tmp_path, "radolan")


@pytest.mark.parametrize("minutes", [5, 60])
def test_classes_of_mch(tmp_path, minutes):
    archives.write_mch(tmp_path / "a.gif", "2015-05-15 15:45", minutes=minutes)
    rate, refused = read(tmp_path, "mch", slice(0, 1))
    amounts = [0, 0, *((10 ** ((np.array([2, 72, 250]) - 71.5) / 20) / 316) ** (1 / 1.5)), NAN, NAN]
    np.testing.assert_allclose(rate[0], np.array(amounts) * 60 / minutes, rtol=1e-5)
    assert refused == 0
    (segment,) = open_source(RadarOptions(path=str(tmp_path), format="mch")).segments()
    assert segment.times[0] == np.datetime64("2015-05-15T15:45")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"scale": "dBZ"}, "SCALE is 'dBZ', expected 'mmh2LASSEN8bitmm_mn': keep archives of different units apart"),
        ({"size": (64, 71)}, "64 x 71 cells, mode P, expected 640 x 710 classes"),
        ({"minutes": 0}, "ACCUm is '000000', expected the minutes of an accumulation"),
    ],
)
def test_other_images_are_named(tmp_path, changes, expected):
    path = archives.write_mch(tmp_path / "a.gif", MOMENT, **changes)
    assert refusal(tmp_path, "mch").startswith(f"{path}: {expected}")


def test_cut_images_are_named(tmp_path):
    path = archives.write_mch(tmp_path / "a.gif", MOMENT)
    path.write_bytes(path.read_bytes()[:-900])
    assert refusal(tmp_path, "mch").startswith(f"{path}: cannot be read (image file is truncated")
    path.write_bytes(b"GIF")
    assert f"{path}: no GIF" in refusal(tmp_path, "mch")


@pytest.mark.parametrize("name", ["a.grib2", "a.grib2.gz"])
def test_mrms_tells_missing_from_dry(tmp_path, name):
    archives.write_mrms(tmp_path / name, MOMENT)
    rate, refused = read(tmp_path, "mrms", x=slice(0, 3))
    np.testing.assert_allclose(rate, [[0, NAN, 1.5], [NAN, 12, 0]], rtol=1e-5)
    assert refused == 0
    grid = open_source(RadarOptions(path=str(tmp_path), format="mrms")).grid()
    assert (grid.y.values.tolist(), grid.x.values.tolist()) == ([40, 39.5], [260, 260.5, 261])
    assert (grid.y.attrs["units"], grid.rain_rate.attrs["units"]) == ("degrees_north", "mm h-1")


def test_other_grib_is_no_mrms(tmp_path):
    path = archives.write_mrms(tmp_path / "a.grib2", MOMENT, number=30)
    assert f"{path}: the field is {{'discipline': 209, 'parameterCategory': 6, 'parameterNumber': 30}}" in refusal(
        tmp_path, "mrms"
    )
    path.write_bytes(path.read_bytes() * 2)
    assert "expected one message of" in refusal(tmp_path, "mrms")
    path.write_bytes(gzip.compress(b"GRIB"))
    assert "no GRIB file" in refusal(tmp_path, "mrms")


@pytest.mark.parametrize(
    ("kind", "name", "write"),
    [
        ("mrms", "a.grib2", archives.write_mrms),
        ("radolan", "a-bin.gz", archives.write_radolan),
        ("mch", "a.gif", archives.write_mch),
    ],
)
def test_an_archive_tells_its_format(tmp_path, kind, name, write):
    for hour in (1, 2, 4):
        (tmp_path / str(hour)).mkdir()
        write(tmp_path / str(hour) / name, f"2024-06-01 0{hour}:50")
    options = radar_format(str(tmp_path))
    assert options is not None
    assert (options.format, options.quantity) == (kind, None)
    info = inspect_source(options)
    assert (info.time_axis.times.size, info.time_axis.present.sum(), info.step) == (4, 3, np.timedelta64(1, "h"))
