import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.config.sources import Crop
from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.template import block_mean, grid_template, target_grid

NAN = np.nan


def template(height: int = 5, width: int = 7) -> xr.Dataset:
    y, x = (xr.Variable(axis, np.arange(size) + 0.5, {"units": "km"}) for axis, size in (("y", height), ("x", width)))
    return grid_template(y, x, {"rain_rate": {"units": "mm h-1"}}, {"title": "T"})


def test_block_mean_by_hand():
    field = np.array(
        [[[1, 2, NAN, 4, 9], [3, 6, NAN, 8, 9], [NAN, NAN, NAN, NAN, 9], [NAN, 5, NAN, NAN, 9]]], np.float32
    )
    # a whole block: 3; half of a block valid: (4 + 8) / 2; less than half: missing; the fifth column is cut off
    np.testing.assert_array_equal(block_mean(field, 2), [[[3, 6], [NAN, NAN]]])
    assert block_mean(field, 2).dtype == np.float32
    assert block_mean(field, 1) is field


def test_target_grid_crops_before_it_coarsens():
    grid = target_grid(template(), Crop(y=(1, 5), x=(0, 7)), 2, "here")
    np.testing.assert_array_equal(grid.y, [2, 4])
    np.testing.assert_array_equal(grid.x, [1, 3, 5])
    assert grid.rain_rate.shape == (0, 2, 3)
    assert grid.rain_rate.attrs == {"units": "mm h-1"}
    assert grid.y.attrs == {"units": "km"}
    assert grid.attrs == {"title": "T"}


@pytest.mark.parametrize(
    ("crop", "coarsen", "message"),
    [
        (Crop(y=(0, 6), x=(0, 7)), 1, r"source.crop.y is \[0, 6\], but the grid of here has 5 cells along y"),
        (None, 6, "source.coarsen is 6, but only 5 cells are left along y"),
    ],
)
def test_cells_outside_are_refused(crop, coarsen, message):
    with pytest.raises(InputError, match=message):
        target_grid(template(), crop, coarsen, "here")
