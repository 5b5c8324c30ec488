"""Fields out of quantiles: each cell's members dealt out in the order that moving noise has there.

Quantiles are of each cell by itself: none of them is a field that could be observed, and sums over an area or over time
cannot be made of them. Here every cell keeps its values, so that no score of a cell changes, and noise decides which
member has which of them (ensemble copula coupling, Schefzik et al. 2013, Stat. Sci. 28, with noise in the place of a
dynamical ensemble). The noise's spectrum falls with a power of the wave number, as steeply as lets members keep most of
the observed power at fine scales on the validation period; from one lead to the next it moves with the mean flow and is
forgotten as residuals are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import fft

PREFIX = "coupling."  # of its arrays in a checkpoint
SLOPES, MEMORY = PREFIX + "slopes", PREFIX + "memory"
SEED = 5
BEYOND = 1.25  # noise is periodic: so much wider than the grid, its two ends do not meet on it


@dataclass(frozen=True)
class Coupling:
    """Slopes (lead, c) of the noise's spectrum, and the share `memory` (lead, c) that it has of the lead before."""

    slopes: np.ndarray
    memory: np.ndarray

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Coupling | None:
        """Return the coupling among a checkpoint's arrays; None where there is none."""
        return cls(arrays[SLOPES], arrays[MEMORY]) if SLOPES in arrays else None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the coupling as arrays of a checkpoint."""
        return {SLOPES: self.slopes.astype(np.float32), MEMORY: self.memory.astype(np.float32)}

    def __call__(self, members: np.ndarray, seconds: np.ndarray, drift: np.ndarray) -> np.ndarray:
        """Return `members` (b, m, lead, c, h, w), in each cell in another order; NaN stays where all members have it.

        The order follows from the init time, `seconds` (b,) since 1970, and from `drift` (b, 2), the mean flow in
        cells a step along x and y.
        """
        coupled = np.empty_like(members)
        for i, (fields, second, along) in enumerate(zip(members, seconds, drift, strict=True)):
            coupled[i] = dealt_out(fields, self._noise(int(second), fields.shape, along))
        return coupled

    def _noise(self, second: int, shape: tuple[int, ...], drift: np.ndarray) -> np.ndarray:
        """Return noise (m, lead, c, h, w) of one init time."""
        m, leads, channels, h, w = shape
        wide = [fft.next_fast_len(int(BEYOND * side), real=True) for side in (h, w)]
        moved = shift(wide, drift)
        noise = np.empty(shape, np.float32)
        for k, c in np.ndindex(m, channels):
            draws = np.random.default_rng([SEED, abs(second), k, c])
            state = _white(draws, wide)
            for lead in range(leads):
                if lead:
                    kept = self.memory[lead, c]
                    state = kept * moved * state + np.sqrt(1 - kept**2) * _white(draws, wide)
                noise[k, lead, c] = _field(state, self.slopes[lead, c], wide)[:h, :w]
        return noise


def dealt_out(members: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Return the values of `members` (m, ...) in the order of `noise` (m, ...), cell by cell."""
    ranks = noise.argsort(axis=0).argsort(axis=0)
    dealt: np.ndarray = np.take_along_axis(np.sort(members, axis=0), ranks, axis=0)
    return dealt


def mean_flow(flow: np.ndarray) -> np.ndarray:
    """Return the mean of a flow (b, 2, h, w) over the grid, (b, 2)."""
    mean: np.ndarray = flow.mean(axis=(2, 3))
    return mean


def _white(draws: np.random.Generator, shape: list[int]) -> np.ndarray:
    spectrum: np.ndarray = fft.rfft2(draws.standard_normal(shape, np.float32))
    return spectrum


def _field(state: np.ndarray, slope: float, shape: list[int]) -> np.ndarray:
    """Return the field of a spectrum of white noise, with power that falls by the wave number to the power `slope`."""
    number = np.hypot(fft.fftfreq(shape[0])[:, None], fft.rfftfreq(shape[1])[None])
    number[0, 0] = 1 / max(shape)
    field: np.ndarray = fft.irfft2(state * (number ** (-slope / 2)).astype(np.float32), s=shape)
    return field


def shift(shape: list[int] | tuple[int, ...], drift: np.ndarray) -> np.ndarray:
    """Return what moves the spectrum of a periodic field by `drift`, cells along x and y."""
    waves = fft.fftfreq(shape[0])[:, None] * drift[1] + fft.rfftfreq(shape[1])[None] * drift[0]
    shift: np.ndarray = np.exp(-2j * np.pi * waves).astype(np.complex64)
    return shift
