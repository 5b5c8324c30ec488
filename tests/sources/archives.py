"""Small archives in the formats of real ones, written by hand."""

import gzip
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyproj
import xarray as xr
from PIL import Image

KNMI_COUNTS = np.array([[0, 7, 65535], [120, 1, 0]], np.uint16)  # hundredths of a millimetre in 5 minutes
FMI_BYTES = np.array([[0, 255, 64], [104, 144, 0]], np.uint8)
BOM_COUNTS = np.array([[0, 20, -1], [3, 0, 1]], np.int16)  # 0.05 mm in 10 minutes


def write_knmi(
    path: Path, end: str, counts: np.ndarray = KNMI_COUNTS, quantity: str = "ACCUMULATED_PRECIPITATION_[MM]"
):
    stop = pd.Timestamp(end)
    start = stop - pd.Timedelta(minutes=5)
    with h5py.File(path, "w") as file:
        image = file.create_group("image1")
        image["image_data"] = counts
        image.attrs["image_geo_parameter"] = np.bytes_(quantity)
        image.attrs["image_product_name"] = np.bytes_("TEST")
        calibration = image.create_group("calibration")
        calibration.attrs["calibration_formulas"] = np.bytes_("GEO=0.01*PV+0.0")
        calibration.attrs["calibration_missing_data"] = np.array([65535])
        calibration.attrs["calibration_out_of_image"] = np.array([65535])
        overview = file.create_group("overview")
        for side, moment in (("start", start), ("end", stop)):
            text = moment.strftime("%d-%b-%Y;%H:%M:%S.000").upper()
            overview.attrs[f"product_datetime_{side}"] = np.array([text.encode()])
        geographic = file.create_group("geographic")
        geographic.attrs.update(geo_column_offset=[0.0], geo_row_offset=[3650.0])
        geographic.attrs.update(geo_pixel_size_x=[1.0], geo_pixel_size_y=[-1.0])
        projection = geographic.create_group("map_projection")
        projection.attrs["projection_proj4_params"] = np.bytes_(
            "+proj=stere +lat_0=90 +lon_0=0.0 +lat_ts=60.0 +a=6378.137 +b=6356.752 +x_0=0 +y_0=0"
        )
    return path


def write_bom(path: Path, end: str, counts: np.ndarray = BOM_COUNTS, units: str = "kg m-2"):
    stop = int(pd.Timestamp(end).timestamp())
    seconds = "seconds since 1970-01-01 00:00:00 UTC"
    with h5py.File(path, "w") as file:
        field = file.create_dataset("precipitation", data=counts)
        field.attrs.update(units=units, scale_factor=[0.05], add_offset=[0.0], grid_mapping="proj")
        field.attrs["_FillValue"] = np.array([-1], np.int16)
        for name, moment in (("start_time", stop - 600), ("valid_time", stop)):
            file.create_dataset(name, data=np.int64(moment)).attrs["units"] = seconds
        file.create_dataset("proj", data=np.int8(0)).attrs.update(
            grid_mapping_name="albers_conical_equal_area",
            standard_parallel=[-26.2, -29.3],
            longitude_of_central_meridian=[153.24],
            latitude_of_projection_origin=[-27.7178],
        )
        for axis, count in zip("yx", counts.shape, strict=True):
            variable = file.create_dataset(axis, data=0.5 * np.arange(count))
            variable.attrs.update(standard_name=f"projection_{axis}_coordinate", units="km")
    return path


def fmi_bytes(obstime: str, values: np.ndarray = FMI_BYTES, parameter: str = "CorrectedReflectivity") -> bytes:
    comments = [
        f"obstime {obstime}",
        f"param {parameter}",
        "metersperpixel_x 1000",
        "metersperpixel_y 1000",
        "projection radar {",
        "type stereographic",
        "centrallongitude 25",
        "centrallatitude 90",
        "truelatitude 60",
        "bottomleft 18.6 57.93",
        "}",
    ]
    head = "P5\n" + "".join(f"# {line}\n" for line in comments) + f"{values.shape[1]} {values.shape[0]}\n255\n"
    return head.encode() + values.tobytes()


def write_fmi(path: Path, obstime: str, values: np.ndarray = FMI_BYTES, parameter: str = "CorrectedReflectivity"):
    path.write_bytes(gzip.compress(fmi_bytes(obstime, values, parameter), mtime=0))
    return path


ODIM_COUNTS = np.array([[0, 255, 40], [1, 90, 0]], np.uint8)  # undetect, nodata, values by gain and offset
LAEA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"


def write_odim(
    path: Path,
    moment: str,
    counts: np.ndarray = ODIM_COUNTS,
    quantities: tuple[str, ...] = ("RATE",),
    layout: int = 2024,
    packing: dict[str, float] | None = None,
    where: dict[str, Any] | None = None,
):
    """Write a composite: in 2018 each quantity is a dataset of its own, in 2024 all are in one.

    The array of quantity i holds `counts + i` where these are neither 0 (undetect) nor 255 (nodata).
    """
    packed = {"gain": 0.5, "offset": -10.0, "nodata": 255.0, "undetect": 0.0} if packing is None else packing
    stop = pd.Timestamp(moment)
    start = stop - pd.Timedelta(minutes=15)
    height, width = counts.shape
    corners = {"LL": (0, 0), "LR": (width, 0), "UL": (0, height), "UR": (width, height)}
    with h5py.File(path, "w") as file:
        place = file.create_group("where")
        place.attrs.update(projdef=np.bytes_(LAEA), xscale=2000.0, yscale=1000.0, xsize=width, ysize=height)
        for corner, (columns, rows) in corners.items():
            degrees = pyproj.Proj(LAEA)(400_000 + 2000 * columns, -1_000_000 + 1000 * rows, inverse=True)
            place.attrs.update({f"{corner}_{name}": value for name, value in zip(("lon", "lat"), degrees, strict=True)})
        place.attrs.update(where or {})
        file.create_group("what").attrs.update(
            object=np.bytes_("COMP"),
            date=np.bytes_(stop.strftime("%Y%m%d")),
            time=np.bytes_(stop.strftime("%H%M%S")),
            source=np.bytes_("ORG:247"),
        )
        for i, quantity in enumerate(quantities):
            dataset = file.require_group(f"dataset{i + 1 if layout == 2018 else 1}")
            period = dataset.require_group("what")
            for side, time in (("start", start), ("end", stop)):
                period.attrs[f"{side}date"] = np.bytes_(time.strftime("%Y%m%d"))
                period.attrs[f"{side}time"] = np.bytes_(time.strftime("%H%M%S"))
            data = dataset.create_group("data1" if layout == 2018 else f"data{i + 1}")
            data["data"] = np.where(np.isin(counts, [0, 255]), counts, counts + i).astype(counts.dtype)
            what = period if layout == 2018 else data.create_group("what")
            what.attrs.update(quantity=np.bytes_(quantity), **packed)
    return path


MRMS_VALUES = np.array([[0, -3, 1.5], [-1, 12, 0]])
RADOLAN_VALUES = {(0, 0): 0x29C4, (0, 1): 0x8003, (0, 2): 0x100A, (1, 0): 25, (1, 1): 0x4001}


def write_radolan(
    path: Path,
    moment: str,
    shape: tuple[int, int] = (900, 900),
    product: str = "RW",
    minutes: int = 60,
    digits: int = 1,
):
    """Write an accumulation that is dry but for `RADOLAN_VALUES`: none, clutter, secondary, plain, negative."""
    values = np.zeros(shape, "<u2")
    for place, value in RADOLAN_VALUES.items():
        values[place] = value
    stop = pd.Timestamp(moment)
    tail = f"VS 3SW   2.13.1PR E-{digits:02d}INT{minutes:4d}GP{shape[0]:4d}x{shape[1]:4d}MS 10<boo,ros>\x03"
    head = f"{product}{stop:%d%H%M}10000{stop:%m%y}BY"
    size = len(head) + 7 + len(tail) + values.nbytes
    raw = f"{head}{size:7d}{tail}".encode() + values.tobytes()
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


def write_mch(
    path: Path, moment: str, scale: str = "mmh2LASSEN8bitmm_mn", minutes: int = 5, size: tuple[int, int] = (640, 710)
):
    """Write classes that are dry but for the first row's: 0, 1, 2, 72, 250, 251, 255."""
    classes = np.zeros(size, np.uint8)
    classes[0, :7] = [0, 1, 2, 72, 250, 251, 255]
    image = Image.frombytes("P", size[::-1], classes.tobytes())
    image.putpalette([level for red in range(256) for level in (red, 255, 255)])
    comment = f"generated\nPRDT=AQC{pd.Timestamp(moment):%y%j%H%M} SCALE={scale} ACCUm={minutes:06d}\n"
    image.save(path, format="GIF", comment=comment.encode(), optimize=False)
    return path


def write_mrms(path: Path, moment: str, values: np.ndarray = MRMS_VALUES, number: int = 1):
    """Write a field whose first row lies in the north, by cells of half a degree."""
    import eccodes

    height, width = values.shape
    handle = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
    keys = {
        **{
            "centre": 161,
            "discipline": 209,
            "parameterCategory": 6,
            "parameterNumber": number,
            "Ni": width,
            "Nj": height,
        },
        **{"latitudeOfFirstGridPointInDegrees": 40, "latitudeOfLastGridPointInDegrees": 40 - (height - 1) / 2},
        **{"longitudeOfFirstGridPointInDegrees": 260, "longitudeOfLastGridPointInDegrees": 260 + (width - 1) / 2},
        **{"iDirectionIncrementInDegrees": 0.5, "jDirectionIncrementInDegrees": 0.5},
        **{"dataDate": int(f"{pd.Timestamp(moment):%Y%m%d}"), "dataTime": int(f"{pd.Timestamp(moment):%H%M}")},
    }
    for key, value in keys.items():
        eccodes.codes_set(handle, key, value)
    eccodes.codes_set_values(handle, values.ravel())
    raw = eccodes.codes_get_message(handle)
    eccodes.codes_release(handle)
    path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    return path


def weather(times: pd.DatetimeIndex, height: int = 3, width: int = 5, units: str = "K") -> xr.Dataset:
    """Return temperature on a latitude-longitude grid; cell (t, y, x) holds 100 t + 10 y + x."""
    t, y, x = np.meshgrid(np.arange(times.size), np.arange(height), np.arange(width), indexing="ij")
    field = xr.Variable(("time", "lat", "lon"), (100 * t + 10 * y + x).astype(np.float32), {"units": units})
    coords = {
        "time": times,
        "lat": ("lat", 50.0 - 0.25 * np.arange(height), {"standard_name": "latitude", "units": "degrees_north"}),
        "lon": ("lon", 0.25 * np.arange(width), {"standard_name": "longitude", "units": "degrees_east"}),
    }
    return xr.Dataset(
        {"t2m": field.copy(), "wind": field.copy()}, coords, {"title": "Weather", "history": "made just now"}
    )


def write_weather(path: Path, dataset: xr.Dataset) -> Path:
    dataset.to_netcdf(path, engine="h5netcdf")
    return path


def write_idx(path: Path, images: np.ndarray) -> Path:
    head = np.array([0x803, len(images), 28, 28], ">u4").tobytes()
    path.write_bytes(gzip.compress(head + images.astype(np.uint8).tobytes(), mtime=0))
    return path
