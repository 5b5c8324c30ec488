"""Members moved so that the observed value falls between them as often as their levels say, on the validation period.

Split-conformal calibration of quantiles (Romano et al. 2019, conformalized quantile regression), for every rank of the
sorted members by itself: the offset of rank i, at level p = (i - 1/2) / m, is the p-quantile of observed - member i
over validation cells and init times. Offsets are found by lead, field and class of the ensemble mean, since errors grow
with what is forecast, and run from one class's mean to the next, so that no border shows in a map; what that leaves of
each class's quantiles is added until they fit. What all members leave at the least value, no rain, stays there: there
only rain can be missed, so the interval covers enough, and an offset would let it drizzle in all such cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

CLASSES = 4  # of the ensemble mean, at most
MIN_CASES = 400  # in a class: its outer levels, 1/20 and 19/20 of ten members, then have 20 cases beyond them
ATOM_SHARE = 0.05  # so much of the least value (no rain) makes it a class of its own
VALUES = 32_000_000  # that a fit keeps, 128 MB: cells are drawn until they fit
SEED = 1  # of that draw
ROUNDS = 4  # of fitting what the offsets between two classes leave over
PREFIX = "calibration."  # of its arrays in a checkpoint
OFFSETS, CENTRES = PREFIX + "offsets", PREFIX + "centres"


@dataclass(frozen=True)
class Calibration:
    """Offsets (lead, c, class, m) of ranked members, at the classes' ensemble means, `centres` (lead, c, class)."""

    offsets: np.ndarray
    centres: np.ndarray

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Calibration | None:
        """Return the calibration among a checkpoint's arrays; None where there is none."""
        return cls(arrays[OFFSETS], arrays[CENTRES]) if OFFSETS in arrays else None

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the calibration as arrays of a checkpoint."""
        return {OFFSETS: self.offsets, CENTRES: self.centres}

    def __call__(self, members: np.ndarray) -> np.ndarray:
        """Return `members` (b, m, lead, c, h, w) moved by their ranks' offsets; NaN stays NaN.

        Each cell's members keep their order, so that an ensemble's fields keep their structure. Values may leave the
        variable's valid range: the caller's clipping leaves the order as it is.
        """
        calibrated = np.empty_like(members)
        for lead, channel in np.ndindex(*members.shape[2:4]):
            calibrated[:, :, lead, channel] = self._one(members[:, :, lead, channel], lead, channel)
        return calibrated

    def _one(self, members: np.ndarray, lead: int, channel: int) -> np.ndarray:
        order = np.argsort(members, axis=1, kind="stable")  # (b, m, h, w): ties by member, NaN last
        ranked = np.take_along_axis(members, order, axis=1)
        mean = np.nan_to_num(ranked.mean(axis=1, dtype=np.float64))
        offsets = offsets_at(mean, self.centres[lead, channel], self.offsets[lead, channel])
        moved = np.sort(ranked + np.moveaxis(offsets, -1, 1), axis=1)  # offsets of ranks may cross
        calibrated = np.empty_like(members)
        np.put_along_axis(calibrated, order, moved, axis=1)
        return calibrated


def offsets_at(mean: np.ndarray, centres: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return offsets (..., m) at ensemble means (...), linear between `centres` (class,), constant beyond them."""
    last = len(offsets) - 1
    place = np.interp(mean, centres, np.arange(last + 1))
    below = place.astype(np.intp)
    above = np.minimum(below + 1, last)
    share = (place - below)[..., None].astype(np.float32)
    mixed: np.ndarray = (1 - share) * offsets[below] + share * offsets[above]
    return mixed


def fit(blocks: Iterable[tuple[np.ndarray, np.ndarray]], init_times: int, *, dry_stays: bool = True) -> Calibration:
    """Return the calibration of blocks of members (b, m, lead, c, h, w) and observed (b, lead, c, h, w), NaN missing.

    `init_times` are those of all blocks together; without `dry_stays` the least value has offsets as others have. Where
    the blocks hold more than `VALUES`, the same share of cells, drawn anew for each init time with one seed, is taken.
    """
    draws = np.random.default_rng(SEED)
    members, observed = [], []
    for block, target in blocks:
        b, m, leads, channels, h, w = block.shape
        count = min(h * w, max(1, VALUES // (init_times * leads * channels * (m + 1))))
        for i in range(b):
            cells = draws.permutation(h * w)[:count]
            members.append(block[i].reshape(m, leads, channels, -1)[..., cells])
            observed.append(target[i].reshape(leads, channels, -1)[..., cells])
    return _fit_cells(np.concatenate(members, axis=-1), np.concatenate(observed, axis=-1), dry_stays)


def _fit_cells(members: np.ndarray, observed: np.ndarray, dry_stays: bool) -> Calibration:
    """Return the calibration of cells: members (m, lead, c, n), observed (lead, c, n)."""
    m, leads, channels, _ = members.shape
    offsets = np.zeros((leads, channels, CLASSES, m), dtype=np.float32)
    centres = np.zeros((leads, channels, CLASSES), dtype=np.float32)
    for lead, channel in np.ndindex(leads, channels):
        valid = np.isfinite(observed[lead, channel]) & np.isfinite(members[0, lead, channel])
        if not valid.any():
            continue  # nothing to learn from: no offset
        ranked = np.sort(members[:, lead, channel, valid], axis=0)
        mean = ranked.mean(axis=0, dtype=np.float64)
        classes, dry = classes_of(mean)
        inside = [classes == min(k, classes.max()) for k in range(CLASSES)]  # those left out repeat the last one
        here = centres[lead, channel] = np.array([mean[chosen].mean() for chosen in inside])
        for _ in range(ROUNDS):
            residuals = observed[lead, channel, valid] - ranked - offsets_at(mean, here, offsets[lead, channel]).T
            offsets[lead, channel] += [conformal_quantiles(residuals[:, chosen]) for chosen in inside]
            if dry and dry_stays:
                offsets[lead, channel, 0] = 0
    return Calibration(offsets, centres)


def classes_of(mean: np.ndarray) -> tuple[np.ndarray, bool]:
    """Return the class 0, 1, … of each ensemble mean (n,), and whether class 0 is the least value, as many have it.

    The lower half of the rest is a class, then the lower half of what remains, and so on, since errors grow fastest
    where the most is forecast. Fewer than `CLASSES` where a class would have fewer than `MIN_CASES` cases.
    """
    least = mean == mean.min()
    if least.all():
        return np.zeros(len(mean), dtype=np.intp), True
    atom = bool(least.sum() >= MIN_CASES and least.mean() >= ATOM_SHARE)
    rest = mean[~least] if atom else mean
    parts = min(CLASSES - atom, max(1, int(np.log2(max(len(rest) / MIN_CASES, 1))) + 1))
    edges = np.unique(np.quantile(rest, 1 - 0.5 ** np.arange(1, parts)))
    classes = np.searchsorted(edges, mean, side="left") + atom
    classes[least & atom] = 0
    return np.unique(classes, return_inverse=True)[1], atom  # without gaps: equal values may leave a class empty


def conformal_quantiles(residuals: np.ndarray) -> np.ndarray:
    """Return for each row i = 1 … m of `residuals` (m, n) its quantile at level p = (i - 1/2) / m, (m,).

    It is the k-th smallest, k = ceil((n + 1) p) above the median and floor((n + 1) p) below: the next observation
    then is outside a pair of levels at most as often as they say, whatever the distribution.
    """
    m, n = residuals.shape
    levels = (np.arange(m) + 0.5) / m
    position = np.where(levels > 0.5, np.ceil((n + 1) * levels), np.floor((n + 1) * levels)).astype(np.intp)
    quantiles: np.ndarray = np.sort(residuals, axis=1)[np.arange(m), np.clip(position, 1, n) - 1]
    return quantiles
