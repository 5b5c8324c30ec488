"""Simulated rain that behaves like radar rain: the embedded default source.

An event is a Gaussian field g of unit variance on a periodic plane twice as wide as the domain, in coordinates that
move with the wind:

1. **Spectral cascade.** The scales of g vary and decay separately, as in String of Beads (Pegram & Clothier 2001, J.
   Hydrol. 241), S-PROG (Seed 2003, J. Appl. Meteor. 42) and STEPS (Bowler et al. 2006, QJRMS 132), here a Fourier mode
   at a time, the limit of narrow bands, instead of by octaves. With λ' = min(wavelength, 96 km), a mode has variance
   ∝ λ'^3.2 and follows a first-order autoregression with the lifetime `lifetime_minutes` (λ' / 32 km)^1.2. Lifetimes
   that grow with scale: Germann & Zawadzki 2002, Mon. Wea. Rev. 130.
2. **Advection.** The plane moves with a wind drawn per event: `wind_speed_m_s`; from around south-west (standard
   deviation 40°); turning (standard deviation 10° an hour); rising or falling (8 % an hour). A smooth, non-divergent
   shear of 1 m/s (root mean square) bends the pattern, one semi-Lagrangian step a frame.
3. **Growth and decay.** The wet share of the plane is a half sine from 45 % to 100 % of the event's `wet_fraction`,
   with a random phase; it sets the threshold q of g.
4. **Orography.** `orography` times the normalised slope along the wind is added to g: rain grows on windward slopes and
   fades in the lee. The hills depend on `seed` alone, so they are the same for all events.
5. **Rain rate.** exp(1.3 (g - q)) - 1 mm/h where g > q, else 0, saturating softly at 100 mm/h: log-normal rates
   (Pegram & Clothier 2001) with soft edges.

With the defaults 19 % of the cells are wet (> 0.1 mm/h) and hold 2.2 mm/h on average; maxima of events are 10 to 87
mm/h. The correlation with the future is .77 / .56 / .42 / .19 / .05 at +5 / +10 / +15 / +30 / +60 minutes in place and
.94 / .86 / .76 / .56 / .38 along the motion (optical flow and extrapolation, 60 events).

Event i depends on (seed, i) and the physics alone, not on the number of events.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.ndimage import map_coordinates
from scipy.special import ndtri

from fieldcast.pipeline.config.sources import StormsOptions
from fieldcast.pipeline.datasets.schema import RAIN_RATE_UNITS, X, Y
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.template import RAIN_RATE, fields, grid_template

SPECTRAL_SLOPE = 3.2
LIFETIME_POWER = 1.2
LIFETIME_SCALE_KM = 32.0
OUTER_SCALE_KM = 96.0
HILL_SCALE_KM = 40.0
LOG_RATE = 1.3  # growth of ln(rain rate) per standard deviation of g
MAX_RATE_MM_H = 100.0
SHEAR_M_S = 1.0
SHEAR_SCALE_KM = 200.0
PREVAILING_DEGREES = 45.0  # towards north-east, from the x axis
ENVELOPE_FLOOR = 0.45
MOST_FRAMES = 5_000_000  # 47 years of five minutes


@dataclass(frozen=True)
class StormsSource:
    """Simulated events at regular intervals; see the module's docstring for the process."""

    options: StormsOptions

    def segments(self) -> Sequence[StormEvent]:
        """Return the events in time order; raise `InputError` where they are more than an archive can hold."""
        options = self.options
        frames = options.events * (options.event_every_minutes // options.step_minutes)
        if frames > MOST_FRAMES:
            raise InputError(
                f"source.events is {options.events}, {frames} steps from the first to the last frame, expected at most "
                f"{MOST_FRAMES}; lower it"
            )
        return [StormEvent(self.options, event) for event in range(self.options.events)]

    def during(self, first: np.datetime64, last: np.datetime64) -> list[StormEvent]:
        """Return the events with frames from `first` to `last`, both included, without a look at all others."""
        options = self.options
        minute, start = np.timedelta64(1, "m"), np.datetime64(options.start, "ns")
        length = options.event_minutes - options.step_minutes  # from an event's first to its last frame
        earliest = math.ceil(((first - start) / minute - length) / options.event_every_minutes)
        latest = math.floor((last - start) / minute / options.event_every_minutes)
        return [StormEvent(options, event) for event in range(max(earliest, 0), min(latest, options.events - 1) + 1)]

    def grid(self) -> xr.Dataset:
        """Return the template: `rain_rate (0, y, x)` in mm h-1, y and x in km; no real place, so no CRS."""
        centres = (np.arange(self.options.cells) + 0.5) * self.options.spacing_km
        y = xr.Variable(Y, centres, {"standard_name": "projection_y_coordinate", "units": "km"})
        x = xr.Variable(X, centres, {"standard_name": "projection_x_coordinate", "units": "km"})
        return grid_template(y, x, {"rain_rate": {**RAIN_RATE}}, {"title": "Simulated rain events"})


@dataclass(frozen=True)
class StormEvent:
    """One event: `event_minutes` of rain from its own seed."""

    options: StormsOptions
    event: int

    @property
    def name(self) -> str:
        """Return 'storm 12'."""
        return f"storm {self.event}"

    @property
    def times(self) -> np.ndarray:
        """Return the times of the event's frames (datetime64[ns])."""
        options = self.options
        minutes = self.event * options.event_every_minutes + np.arange(0, options.event_minutes, options.step_minutes)
        return np.datetime64(options.start, "ns") + minutes.astype("timedelta64[m]")

    def read(self, frames: np.ndarray, y: slice, x: slice) -> xr.Dataset:
        """Return `rain_rate (time, y, x)` in mm h-1 of the wanted frames and cells."""
        rain = simulate(self.options, self.event)[frames, y, x]
        return fields(self.times[frames], {"rain_rate": rain}, {"rain_rate": RAIN_RATE_UNITS})


def simulate(options: StormsOptions, event: int) -> np.ndarray:
    """Return the rain rate of one event, (frames, cells, cells) float32, mm/h, never negative, nothing missing."""
    rng = np.random.default_rng([options.seed, event])
    frames = options.event_minutes // options.step_minutes
    velocity = _wind(rng, options, frames)  # (frames, 2): y, x in cells a step
    position = np.cumsum(velocity, axis=0)
    shear = _shear(rng, options)
    threshold = ndtri(1 - _wet_share(rng, options, frames))
    hill_slope = _hill_slope(options)
    decay, deviation = _cascade(options)
    modes = deviation * _white(rng, decay)
    bend = np.zeros_like(shear)  # how far shear has carried the pattern, in the moving frame
    domain = np.indices((options.cells, options.cells), dtype=float)
    rain = np.empty((frames, options.cells, options.cells), np.float32)
    for frame in range(frames):
        moving = domain - position[frame][:, None, None]
        origin = moving - np.stack([_sample(component, moving, order=1) for component in bend])
        gaussian = _sample(_field(modes), origin, order=3)
        gaussian += options.orography * _upslope(hill_slope, velocity[frame])
        rain[frame] = rain_rate(gaussian - threshold[frame])
        modes = decay * modes + np.sqrt(1 - decay**2) * deviation * _white(rng, decay)
        departure = np.indices(shear.shape[1:], dtype=float) - shear
        bend = np.stack([_sample(component, departure, order=1) for component in bend]) + shear
    return rain


def rain_rate(excess: np.ndarray) -> np.ndarray:
    """Return mm/h for the Gaussian field's excess over the threshold: 0 below, log-normal above, at most 100 mm/h."""
    rate = np.expm1(LOG_RATE * np.maximum(excess, 0.0))
    return np.asarray(-MAX_RATE_MM_H * np.expm1(-rate / MAX_RATE_MM_H))


def _wind(rng: np.random.Generator, options: StormsOptions, frames: int) -> np.ndarray:
    """Return the mean wind (frames, 2): y and x components in cells a step."""
    hours = np.arange(frames) * options.step_minutes / 60
    speed = rng.uniform(*options.wind_speed_m_s) * np.exp(rng.normal(0, 0.08) * hours)
    direction = np.deg2rad(rng.normal(PREVAILING_DEGREES, 40) + rng.normal(0, 10) * hours)
    return np.stack([np.sin(direction), np.cos(direction)], axis=1) * (speed * _cells_per_m_s(options))[:, None]


def _cells_per_m_s(options: StormsOptions) -> float:
    return 0.06 * options.step_minutes / options.spacing_km  # 1 m/s is 0.06 km a minute


def _wet_share(rng: np.random.Generator, options: StormsOptions, frames: int) -> np.ndarray:
    """Return the wet share of the plane (frames,): a half sine, with the height of the event early, midway or late."""
    peak, phase = rng.uniform(*options.wet_fraction), rng.uniform(-0.2, 0.2)
    life = np.sin(np.pi * np.clip(np.linspace(0, 1, frames) + phase, 0, 1))
    return peak * (ENVELOPE_FLOOR + (1 - ENVELOPE_FLOOR) * life)


def _cascade(options: StormsOptions) -> tuple[np.ndarray, np.ndarray]:
    """Return for each mode of the plane the autoregression coefficient of a step and the standard deviation."""
    wavelength = np.minimum(_wavelength_km(options), OUTER_SCALE_KM)
    lifetime = options.lifetime_minutes * (wavelength / LIFETIME_SCALE_KM) ** LIFETIME_POWER
    deviation = wavelength ** (SPECTRAL_SLOPE / 2)
    deviation[0, 0] = 0
    return np.exp(-options.step_minutes / lifetime), _to_unit_variance(deviation)


def _wavelength_km(options: StormsOptions) -> np.ndarray:
    size = 2 * options.cells
    ky, kx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    wavenumber = np.hypot(ky, kx)
    wavenumber[0, 0] = 1 / size
    return np.asarray(options.spacing_km / wavenumber)


def _to_unit_variance(deviation: np.ndarray) -> np.ndarray:
    size = deviation.shape[0]
    twice = np.full(deviation.shape[1], 2.0)
    twice[[0, -1]] = 1.0  # the half-complex spectrum holds these columns once
    return np.asarray(deviation * size / np.sqrt((deviation**2 * twice).sum()))


def _white(rng: np.random.Generator, like: np.ndarray) -> np.ndarray:
    """Return the spectrum of white noise on the plane, scaled so that a field of unit deviations has variance 1."""
    size = like.shape[0]
    return np.asarray(np.fft.rfft2(rng.standard_normal((size, size))) / size)


def _field(modes: np.ndarray) -> np.ndarray:
    size = modes.shape[0]
    return np.asarray(np.fft.irfft2(modes, s=(size, size)) * size)


def _sample(field: np.ndarray, places: np.ndarray, order: int) -> np.ndarray:
    return np.asarray(map_coordinates(field, places, order=order, mode="grid-wrap"))


def _smooth(rng: np.random.Generator, options: StormsOptions, scale_km: float) -> np.ndarray:
    """Return a smooth periodic field of unit variance on the plane, with wavelengths around `scale_km` and longer."""
    wavelength = _wavelength_km(options)
    deviation = np.exp(-((scale_km / wavelength) ** 2))
    deviation[0, 0] = 0
    deviation = _to_unit_variance(deviation)
    return _field(deviation * _white(rng, deviation))


def _shear(rng: np.random.Generator, options: StormsOptions) -> np.ndarray:
    """Return the non-divergent wind that bends the pattern, (2, plane, plane) in cells a step."""
    along_y, along_x = np.gradient(_smooth(rng, options, SHEAR_SCALE_KM))
    flow = np.stack([along_x, -along_y])
    return np.asarray(flow / np.sqrt((flow**2).sum(axis=0).mean()) * SHEAR_M_S * _cells_per_m_s(options))


def _hill_slope(options: StormsOptions) -> np.ndarray:
    """Return the normalised slope of the hills (2, cells, cells); the same for all events of one seed."""
    rng = np.random.default_rng([options.seed, 0, 1])
    slope = np.stack(np.gradient(_smooth(rng, options, HILL_SCALE_KM)))
    slope = slope / np.sqrt((slope**2).mean())
    return np.asarray(slope[:, : options.cells, : options.cells])


def _upslope(slope: np.ndarray, velocity: np.ndarray) -> np.ndarray:
    """Return the slope along the wind's direction, of unit variance over all directions."""
    return np.asarray(np.tensordot(velocity / max(float(np.hypot(*velocity)), 1e-9), slope, axes=1))
