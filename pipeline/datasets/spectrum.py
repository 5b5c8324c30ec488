"""Power of fields at each wavelength."""

from __future__ import annotations

import numpy as np

FINE_CELLS = 8  # wavelengths of at most so many cells are the fine ones: what blur takes away first


def radial_power(fields: np.ndarray) -> np.ndarray:
    """Return the radially averaged power spectrum `(frame, radius)` of complete fields `(frame, y, x)`, float64.

    The power |FFT|² / cells is averaged over the wave numbers (ky, kx), both counted in waves across the grid, whose
    distance from 0 rounds to the radius; radii are 0 to below half of the longer side. Ruzanski & Chandrasekar (2011),
    J. Appl. Meteor. Climatol. 50; on grids that are not square a radius joins unequal wavelengths, as in pysteps.
    """
    ny, nx = fields.shape[1:]
    half = np.abs(np.fft.rfft2(fields.astype(np.float64))) ** 2 / (ny * nx)
    ky, kx = np.fft.fftfreq(ny, 1 / ny), np.arange(half.shape[2])
    radius = np.hypot(ky[:, None], kx[None, :]).round().astype(int)
    twice = np.where((kx == 0) | (2 * kx == nx), 1.0, 2.0)  # the columns that the real transform leaves out
    share = np.broadcast_to(twice, radius.shape)
    known = radii(ny, nx) + 1
    count = np.bincount(radius.ravel(), share.ravel())[:known]
    power = [np.bincount(radius.ravel(), (frame * share).ravel())[:known] for frame in half]
    return np.asarray(power).reshape(len(fields), known) / count


def is_fine(shape: tuple[int, ...]) -> np.ndarray:
    """Return for each radius from 1 on of a grid of `shape` (y, x) whether it is of the fine scales."""
    ny, nx = shape
    fine: np.ndarray = np.arange(1, radii(ny, nx) + 1) * FINE_CELLS >= max(shape)
    return fine


def radii(ny: int, nx: int) -> int:
    """Return the number of radii above 0 and below half of the longer side."""
    return (max(ny, nx) - 1) // 2
