"""Scores of pictures: peak signal-to-noise ratio and structural similarity, as the video field reports them.

Both need the range that the values may have; it is that of the training period, the same for all models.
"""

from __future__ import annotations

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.verification.spatial import window_counts

SUMS = ("ssim", "ssim_windows")
WINDOW = 7  # cells along y and x


def similarity_sums(
    forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray, data_range: float
) -> dict[str, np.ndarray]:
    """Return the summed structural similarity of each frame's windows and their number, by the names in `SUMS`.

    The arrays are `(frame, y, x)`, the sums float64 `(frame,)`. A window of 7 x 7 cells, all of equal weight, counts
    where it is inside the grid and holds valid cells alone; a grid narrower than a window has none. `data_range` is
    greater than 0, in the field's units. Wang et al. (2004), IEEE Trans. Image Process. 13, eq. 13, with sample
    covariances as in scikit-image.
    """
    if min(valid.shape[1:]) < WINDOW:
        return {name: np.zeros(len(valid)) for name in SUMS}
    from skimage.metrics import structural_similarity  # half a second to import

    inner = (slice(None), *(slice(WINDOW // 2, -(WINDOW // 2)),) * 2)
    whole = (window_counts(valid, [(WINDOW, WINDOW)])[0][1] == WINDOW * WINDOW)[inner]
    f, o = (np.where(valid, field, field.dtype.type(0)).astype(np.float64) for field in (forecast, observed))
    total = np.zeros(len(valid))
    for i in np.flatnonzero(whole.any(axis=(1, 2))):
        pair = structural_similarity(f[i], o[i], win_size=WINDOW, data_range=data_range, full=True)  # type: ignore[no-untyped-call]
        similarity = pair[1]
        total[i] = similarity[inner[1:]][whole[i]].sum()
    return {"ssim": total, "ssim_windows": np.count_nonzero(whole, axis=(1, 2)).astype(np.float64)}


def ssim(sums: xr.Dataset) -> xr.DataArray:
    """Return the mean structural similarity: −1 to 1, 1 is perfect.

    The mean runs over all windows of all init times; NaN where no window is without a missing cell.
    """
    total, windows = (sums[name].sum(INIT_TIME) for name in SUMS)
    return total / windows.where(windows > 0)


def psnr(sums: xr.Dataset) -> xr.DataArray:
    """Return the peak signal-to-noise ratio, 10 log10(range² / MSE), in dB; higher is better.

    The MSE is pooled over all valid cells of all init times before the logarithm. NaN where no cell is valid, and where
    the error is 0: the ratio has no bound there.
    """
    error = sums["squared_error"].sum(INIT_TIME)
    decibel: xr.DataArray = 10 * xr.ufuncs.log10(sums["peak_squared"].sum(INIT_TIME) / error.where(error > 0))
    return decibel
