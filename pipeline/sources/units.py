"""One unit for each quantity, whatever unit an archive has it in.

Rain and other fluxes of water come in mm h-1, temperatures in K, pressures in Pa, speeds in m s-1; quantities that have
no such unit here keep theirs. A kilogram of water on a square metre is a millimetre.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from fieldcast.pipeline.config.sources import GriddedOptions
from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.accumulations import unknown_period
from fieldcast.pipeline.sources.radar.reflectivity import rain_rate

Dimensions = tuple[int, int, int, int]  # powers of kg, m, s, K
MASS, LENGTH, TIME, TEMPERATURE = (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)
PRESSURE, SPEED, WATER, WATER_FLUX = (1, -1, -2, 0), (0, 1, -1, 0), (1, -2, 0, 0), (1, -2, -1, 0)
UNITS: dict[str, tuple[float, Dimensions]] = {  # in SI
    **{"kg": (1.0, MASS), "g": (1e-3, MASS), "m": (1.0, LENGTH), "cm": (1e-2, LENGTH), "km": (1e3, LENGTH)},
    **dict.fromkeys(("mm", "millimeter", "millimetre"), (1e-3, LENGTH)),
    **dict.fromkeys(("in", "inch"), (0.0254, LENGTH)),
    **dict.fromkeys(("s", "sec", "second", "seconds"), (1.0, TIME)),
    **dict.fromkeys(("min", "minute", "minutes"), (60.0, TIME)),
    **dict.fromkeys(("h", "hr", "hour", "hours"), (3600.0, TIME)),
    **dict.fromkeys(("d", "day", "days"), (86_400.0, TIME)),
    **dict.fromkeys(("K", "kelvin", "Kelvin"), (1.0, TEMPERATURE)),
    **{"Pa": (1.0, PRESSURE), "pascal": (1.0, PRESSURE), "kPa": (1000.0, PRESSURE)},
    **dict.fromkeys(("hPa", "mbar", "millibar", "millibars", "mb"), (100.0, PRESSURE)),
    **dict.fromkeys(("kt", "kts", "knot", "knots"), (1852 / 3600, SPEED)),
}
CANONICAL = {TEMPERATURE: "K", PRESSURE: "Pa", SPEED: "m s-1"}
CELSIUS = {"degC", "deg_C", "degrees_C", "celsius", "Celsius", "degree_Celsius", "degrees_celsius", "°C", "C"}
FAHRENHEIT = {"degF", "deg_F", "fahrenheit", "Fahrenheit", "degree_Fahrenheit", "°F", "F"}
DECIBELS = {"dBZ", "dBz", "dbz", "DBZ"}
TOKEN = re.compile(r"\s*(/?)\s*([A-Za-z]+)(-?\d+)?")
RAIN = re.compile(r"precipitation|rainfall|snowfall|rain rate|prate")
NO_AMOUNT = re.compile(r"type|probab|fraction|percent|ratio|flag|time|column")
LENGTHS_OF_RAIN = ("mm", "milli", "in")  # whose rates are of water; others need a name that tells them from a speed
RATE_NAMES = {  # CF's names of mass fluxes -> of the same as a height of liquid water a time
    "precipitation_flux": "lwe_precipitation_rate",
    "rainfall_flux": "rainfall_rate",
    "snowfall_flux": "lwe_snowfall_rate",
}


@dataclass(frozen=True)
class Conversion:
    """The way from the units of a file to those of the store."""

    source: str
    units: str
    factor: float = 1.0
    offset: float = 0.0
    z_r: tuple[float, float] | None = None  # a and b of Z = a R^b, for reflectivity
    renames: bool = False  # a flux of mass becomes a rate of height

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return values in the store's units."""
        if self.z_r:
            return rain_rate(values, self.z_r)
        if (self.factor, self.offset) == (1.0, 0.0):
            return values
        return np.asarray(self.factor * np.asarray(values, np.float64) + self.offset)

    def attributes(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        """Return a variable's attributes with the store's units, and limits in these."""
        limits = [key for key in ("valid_min", "valid_max") if key in attributes]
        kept = {**attributes, **{key: float(self(np.array(attributes[key]))) for key in limits}, "units": self.units}
        if self.renames and (name := RATE_NAMES.get(kept.pop("standard_name", ""))):
            kept["standard_name"] = name
        return kept


def conversion_of(path: str, name: str, attributes: Mapping[str, Any], options: GriddedOptions) -> Conversion:
    """Return the conversion of a variable, by its units and, where these are a speed's, by its names.

    Raise `InputError` for an amount of rain of no known period, and for rain in unknown units.
    """
    units = str(attributes["units"])
    if units in DECIBELS and options.z_r:
        return Conversion(units, RAIN_RATE_UNITS, z_r=options.z_r, renames=True)
    if units in CELSIUS:
        return Conversion(units, "K", 1.0, 273.15)
    if units in FAHRENHEIT:
        return Conversion(units, "K", 5 / 9, 273.15 - 32 * 5 / 9)
    words = " ".join(str(attributes.get(key, "")) for key in ("standard_name", "long_name")) + f" {name}"
    words = words.replace("_", " ").lower()
    rain = bool(RAIN.search(words)) and not NO_AMOUNT.search(words)
    doubtful = rain and options.units_of(name) is None
    parsed = in_si(units)
    if parsed is None:
        if doubtful and units not in DECIBELS:
            raise InputError(
                f"{path}: '{name}' is rain by its name, in unknown units '{units}', expected a rate such as mm h-1 or "
                "kg m-2 s-1: give the units by source.units"
            )
        return Conversion(units, units)
    factor, dimensions = parsed
    if doubtful and dimensions in (LENGTH, WATER):
        raise unknown_period(path, name)
    if dimensions == WATER_FLUX:
        return Conversion(units, RAIN_RATE_UNITS, _rounded(3600 * factor), renames=True)
    if dimensions == SPEED and (rain or units.startswith(LENGTHS_OF_RAIN)):
        return Conversion(units, RAIN_RATE_UNITS, _rounded(3.6e6 * factor))
    canonical = CANONICAL.get(dimensions, units)
    return Conversion(units, canonical, _rounded(factor) if dimensions in CANONICAL else 1.0)


def in_si(units: str) -> tuple[float, Dimensions] | None:
    """Return the factor to SI and the dimensions of units such as 'kg m-2 s-1' or 'mm/h'; None where unknown."""
    text = re.sub(r"(?<=[A-Za-z\d])[.·*](?=[A-Za-z])", " ", units.replace("**", "").replace("^", "")).strip()
    if not text or not re.fullmatch(f"(?:{TOKEN.pattern})+", text):
        return None
    factor, dimensions = 1.0, (0, 0, 0, 0)
    for slash, name, digits in TOKEN.findall(text):
        if name not in UNITS:
            return None
        power = int(digits or 1) * (-1 if slash else 1)
        own, powers = UNITS[name]
        factor *= own**power
        kg, m, s, kelvin = (have + power * each for have, each in zip(dimensions, powers, strict=True))
        dimensions = (kg, m, s, kelvin)
    return factor, dimensions


def converted(frames: xr.Dataset, conversions: Mapping[str, Conversion]) -> xr.Dataset:
    """Return frames with each variable in the store's units; one in units that its header had not stays as it is."""
    changed = {}
    for name, conversion in conversions.items():
        array = frames[name]
        if array.attrs["units"] == conversion.source:
            values = conversion(array.values).astype(np.float32)
            changed[name] = array.copy(data=values).assign_attrs(units=conversion.units)
    return frames.assign(changed)


def _rounded(factor: float) -> float:
    """Return a factor without the last digits of its computation: 1 for the same units by another spelling."""
    return float(f"{factor:.12g}")
