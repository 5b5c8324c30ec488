import numpy as np
import pytest

from fieldcast.pipeline.datasets.finite import refuse_infinite, require_finite
from fieldcast.pipeline.errors import InputError


def test_finite_values_pass():
    require_finite("a.nc", "x", np.array([1.0, -3e38]))
    require_finite("a.nc", "x", 2.0)
    refuse_infinite("a.zarr", "x", np.array([[[1.0, np.nan]]]), np.array(["2020-01-01"], "datetime64[ns]"))


def test_the_first_value_is_named_with_its_place():
    values = np.ones((2, 3))
    values[1, 2], values[1, 0] = np.inf, np.nan
    with pytest.raises(InputError, match=r"a.nc: rain.n is nan at lead 1, row 0 \(2 of 6 values\), expected .*; do it"):
        require_finite("a.nc", "rain.n", values, "do it", ["lead", "row"])
    with pytest.raises(InputError, match=r"a.nc: scale is inf \(1 of 1 values\)"):
        require_finite("a.nc", "scale", np.inf)


def test_an_infinite_value_is_named_with_its_time():
    frames = np.zeros((2, 2, 3, 4))
    frames[1, 0, 2, 3] = -np.inf
    times = np.datetime64("2020-01-01", "ns") + np.arange(4).reshape(2, 2) * np.timedelta64(1, "h")
    with pytest.raises(InputError, match=r"a.zarr: rain is -inf at 2020-01-01T02:00:00 \(1 such values\)"):
        refuse_infinite("a.zarr", "rain", frames, times)
