"""Files of archives, spoilt by rule: cut, emptied, of another kind, with flipped bytes."""

from __future__ import annotations

import gzip
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from tests.sources.archives import fmi_bytes, write_bom, write_knmi, write_mch, write_mrms, write_odim, write_radolan

Spoilt = tuple[str, dict[str, Any], str, bytes]  # what it is, the source, the file's name, its content
CUTS = (0, 1, 3, 4, 8, 16, 64, 200, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
KINDS = ("netcdf4", "netcdf3", "grib", "bom", "knmi", "fmi", "odim", "mrms", "radolan", "mch", "digits")
OTHERS = {
    "text": b"no archive\n" * 50,
    "zeros": bytes(5000),
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(500),
    "gzip": gzip.compress(b"x"),
}


def spoilt_files(folder: Path, flips: int) -> Iterator[Spoilt]:
    """Yield spoilt files of every kind; those with flipped bytes, `flips` a kind, may still be read."""
    whole = {kind: _whole(kind, folder) for kind in KINDS}
    for kind, (source, name, content) in whole.items():
        for cut in CUTS:
            size = int(cut) if cut >= 1 or not cut else int(cut * len(content))
            yield f"{kind} cut after {size} bytes", source, name, content[:size]
        for other, others in OTHERS.items():
            yield f"{kind} that is {other}", source, name, others
        for other, (_, _, others) in whole.items():
            if other != kind and {kind, other} not in ({"netcdf4", "netcdf3"},):
                yield f"{kind} that is {other}", source, name, others
        draws = random.Random(kind)
        for _ in range(flips):
            spoilt = bytearray(content)
            place = draws.randrange(len(spoilt))
            spoilt[place] ^= 1 << draws.randrange(8)
            yield f"{kind} with a flipped bit at {place}", source, name, bytes(spoilt)
        yield f"{kind} with bytes after its end", source, name, content + b"\x00more" * 40


def _whole(kind: str, folder: Path) -> tuple[dict[str, Any], str, bytes]:
    """Return the source, the name and the content of a small file that is fine."""
    gridded = {"kind": "gridded", "variables": ["t"]}
    radar = {"kind": "radar"}
    makers: dict[str, Callable[[Path], Any]] = {
        "netcdf4": lambda path: _field().to_netcdf(path, engine="h5netcdf"),
        "netcdf3": lambda path: _field().to_netcdf(path, engine="scipy"),
        "grib": _write_grib,
        "bom": lambda path: write_bom(path, "2020-10-31 06:00"),
        "knmi": lambda path: write_knmi(path, "2020-10-31 06:00"),
        "fmi": lambda path: path.write_bytes(fmi_bytes("202010310600")),
        "odim": lambda path: write_odim(path, "2020-10-31 06:00"),
        "mrms": lambda path: write_mrms(path, "2020-10-31 06:00"),
        "radolan": lambda path: write_radolan(path, "2020-10-31 06:50"),
        "mch": lambda path: write_mch(path, "2020-10-31 06:00"),
        "digits": lambda path: path.write_bytes(struct.pack(">4i", 2051, 4, 28, 28) + bytes(range(196)) * 16),
    }
    sources = {
        "netcdf4": (gridded, "a.nc"),
        "netcdf3": (gridded, "a.nc"),
        "grib": (gridded, "a.grib"),
        "bom": ({**radar, "format": "bom"}, "66_20201031_060000.prcp-c10.nc"),
        "knmi": ({**radar, "format": "knmi"}, "RAD_NL25_RAP_5min_202010310600.h5"),
        "fmi": ({**radar, "format": "fmi"}, "202010310600_fmi.radar.composite.lowest_FIN.pgm"),
        "odim": ({**radar, "format": "odim"}, "T_PAAH21_C_EUOC_20201031060000.hdf"),
        "mrms": ({**radar, "format": "mrms"}, "PrecipRate_00.00_20201031-060000.grib2"),
        "radolan": ({**radar, "format": "radolan"}, "raa01-rw_10000-2010310650-dwd---bin"),
        "mch": ({**radar, "format": "mch"}, "AQC203050600F_00005.801.gif"),
        "digits": ({"kind": "moving_mnist"}, "digits"),
    }
    path = folder / "whole"
    makers[kind](path)
    content = path.read_bytes()
    path.unlink()
    source, name = sources[kind]
    return source, name, content


def _field() -> xr.Dataset:
    times = np.datetime64("2024-01-01", "ns") + np.arange(6) * np.timedelta64(1, "h")
    axes = {axis: (axis, np.arange(size, dtype=float), {"units": "km"}) for axis, size in (("y", 5), ("x", 7))}
    values = np.random.default_rng(1).normal(280, 3, (6, 5, 7)).astype(np.float32)
    field = xr.DataArray(values, {"time": times, **axes}, ("time", "y", "x"), attrs={"units": "K"})
    return xr.Dataset({"t": field})


def _write_grib(path: Path) -> None:
    import eccodes

    with path.open("wb") as file:
        for hour in range(3):
            message = eccodes.codes_grib_new_from_samples("regular_ll_sfc_grib2")
            eccodes.codes_set(message, "dataTime", 100 * hour)
            eccodes.codes_set(message, "shortName", "t")
            eccodes.codes_set_values(message, np.linspace(270, 290, eccodes.codes_get_size(message, "values")))
            eccodes.codes_write(message, file)
            eccodes.codes_release(message)
