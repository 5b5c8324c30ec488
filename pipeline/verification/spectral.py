"""Scores of scales: how much of the observed variability a forecast has at each wavelength."""

from __future__ import annotations

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.datasets.spectrum import is_fine, radial_power, radii

SUMS = ("forecast_power", "observed_power")
FINE_SUMS = ("fine_forecast_power", "fine_observed_power")
WAVELENGTH = "wavelength"
RESOLVED = 0.5  # share of the observed power that a forecast has at the scales that it resolves


def wavelengths_km(shape: tuple[int, int], spacing: tuple[float, float]) -> np.ndarray:
    """Return the wavelength in km of each radius from 1 on, descending: length of the longer side / radius.

    `shape` is `(y, x)` in cells, `spacing` in km along both; cells that are not square count by their mean side.
    """
    return max(shape) * _side(spacing) / np.arange(1, radii(*shape) + 1)


def power_sums(
    forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray, members: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Return the power of each frame at each radius from 1 on, and its sum over fine scales, forecast and observed.

    The arrays are `(frame, y, x)`, cells that are not valid 0 in both fields. With `members` `(frame, member, y, x)`
    the forecast's power is the mean of the members' power, as a mean of members is smoother than any of them. The
    first two sums are `(frame, radius)`, those over wavelengths of at most `FINE_CELLS` cells `(frame,)`.
    """
    of_observed = radial_power(np.where(valid, observed, 0))[:, 1:]
    if members is None:
        of_forecast = radial_power(np.where(valid, forecast, 0))[:, 1:]
    else:
        each = [radial_power(np.where(valid, members[:, m], 0))[:, 1:] for m in range(members.shape[1])]
        of_forecast = np.mean(each, axis=0)
    fine = is_fine(valid.shape[1:])
    powers = (of_forecast, of_observed)
    return dict(zip(SUMS, powers, strict=True)) | dict(
        zip(FINE_SUMS, (power[:, fine].sum(axis=1) for power in powers), strict=True)
    )


def spectrum_ratio(sums: xr.Dataset) -> xr.DataArray:
    """Return the power of forecasts over that of observations at fine scales: 1 is perfect, below 1 is blurred.

    Powers at wavelengths of at most `FINE_CELLS` cells are summed over wavelengths and init times before the division;
    NaN where the observations have none.
    """
    forecast, observed = (sums[name].sum(INIT_TIME) for name in FINE_SUMS)
    return forecast / observed.where(observed > 0)


def effective_resolution_km(sums: xr.Dataset) -> xr.DataArray:
    """Return the shortest wavelength in km down to which forecasts keep half of the observed power; lower is better.

    Coming from the longest wavelength, the ratio of powers summed over init times is at least `RESOLVED` at this one
    and at all longer ones. NaN where it is not even at the longest. After Skamarock (2004), Mon. Wea. Rev. 132.
    """
    forecast, observed = (sums[name].sum(INIT_TIME) for name in SUMS)
    enough = (forecast / observed.where(observed > 0)) >= RESOLVED
    down_to = enough.astype(int).cumprod(WAVELENGTH).astype(bool)
    shortest = sums[WAVELENGTH].where(down_to, np.inf).min(WAVELENGTH)
    return shortest.where(np.isfinite(shortest)).drop_attrs()


def _side(spacing: tuple[float, float]) -> float:
    return float(np.sqrt(spacing[0] * spacing[1]))
