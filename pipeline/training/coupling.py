"""Noise that couples the quantiles of cells, fitted to the validation period: how rough it is, how long it lasts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import fft

from fieldcast.models.layers.motion import motion
from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.pipeline.datasets.frames import thinned
from fieldcast.pipeline.datasets.spectrum import is_fine, radial_power
from fieldcast.pipeline.forecasting.coupling import Coupling, mean_flow, shift

CHOICES = np.arange(0.5, 5.01, 0.5)  # of the power of the wave number by which the noise's power falls
TIMES, CELLS, MEMBERS = 20, 192, 3  # for the choice of a slope: init times, side of a crop in the middle, members
LONGEST = 0.99  # memory, at most
ENOUGH = 0.7  # of the observed power at fine scales
Block = tuple[np.ndarray, np.ndarray]


def fit(blocks: Sequence[Block], options: MotionOptions, moving: bool) -> Coupling:
    """Return the coupling of blocks of members (1, m, lead, c, h, w) and observed (1, lead, c, h, w), NaN missing.

    At each lead the noise is as smooth as it can be while members have `ENOUGH` of the observed power at fine scales.
    With `moving` it goes with the mean flow, as it is seen here in what was observed.
    """
    few = [blocks[i] for i in thinned(np.arange(len(blocks)), TIMES)]
    power = sum(_powers(i, *_middle(members[0], observed[0])) for i, (members, observed) in enumerate(few))
    products = sum(
        _lag_products(observed[0] - np.median(members[0], axis=0), _drift(observed, options, moving))
        for members, observed in few
    )
    assert isinstance(power, np.ndarray)
    assert isinstance(products, np.ndarray)  # of one block at least
    ratios = np.maximum(power[0], 1e-9) / np.maximum(power[1], 1e-9)
    scale = np.sqrt(products[1] * products[2])
    memory = np.divide(products[0], scale, out=np.zeros_like(scale), where=scale > 0)
    enough = np.where(ratios >= ENOUGH, CHOICES[:, None, None], 0).max(axis=0)
    return Coupling(np.where(enough > 0, enough, CHOICES[ratios.argmax(axis=0)]), memory.clip(0, LONGEST))


def _drift(observed: np.ndarray, options: MotionOptions, moving: bool) -> np.ndarray:
    """Return the mean flow (2,) of the first field in observations (1, lead, c, h, w)."""
    return mean_flow(motion(observed[:, :, 0], options).numpy())[0] if moving else np.zeros(2)


def _middle(*fields: np.ndarray) -> list[np.ndarray]:
    """Return the middle of fields (..., h, w), at most `CELLS` high and wide."""
    top, left = (max(0, side - CELLS) // 2 for side in fields[0].shape[-2:])
    return [field[..., top : top + CELLS, left : left + CELLS] for field in fields]


def _powers(seed: int, members: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return the power at fine scales (2, choice, lead, c) of members (m, lead, c, h, w) and of what was observed."""
    valid = np.isfinite(observed) & np.isfinite(members).all(axis=0)
    of_observed = _fine_power(np.where(valid, observed, 0))
    powers = np.stack([np.zeros((len(CHOICES), *of_observed.shape)), np.stack([of_observed] * len(CHOICES))])
    for k, slope in enumerate(CHOICES):
        everywhere = np.full(observed.shape[:2], slope)
        coupled = Coupling(everywhere, 0 * everywhere)(members[None], np.array([seed]), np.zeros((1, 2)))[0]
        powers[0, k] = _fine_power(np.where(valid, coupled[:MEMBERS], 0)).mean(axis=0)
    return powers


def _fine_power(fields: np.ndarray) -> np.ndarray:
    """Return the power of complete fields (..., h, w) at fine scales (...)."""
    h, w = fields.shape[-2:]
    power: np.ndarray = radial_power(fields.reshape(-1, h, w))[:, 1:][:, is_fine((h, w))].sum(axis=1)
    return power.reshape(fields.shape[:-2])


def _lag_products(residuals: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """Return the sums (3, lead, c) of products of residuals (lead, c, h, w) with those of a lead before, moved along.

    The first is the product of the two, the others their squares; those of the first lead are 0.
    """
    known = np.nan_to_num(residuals)
    before = fft.irfft2(fft.rfft2(known[:-1]) * shift(known.shape[-2:], drift), s=known.shape[-2:])
    sums = np.zeros((3, *known.shape[:2]))
    for i, (one, other) in enumerate(((before, known[1:]), (before, before), (known[1:], known[1:]))):
        sums[i, 1:] = (one * other).sum(axis=(2, 3))
    return sums
