import numpy as np
import pytest
import xarray as xr

from fieldcast.pipeline.datasets.schema import check_forecasts
from fieldcast.pipeline.errors import SchemaError


def forecasts() -> xr.Dataset:
    inits = np.datetime64("2024-01-01", "ns") + np.arange(2) * np.timedelta64(1, "h")
    leads = (np.arange(1, 4) * np.timedelta64(5, "m")).astype("timedelta64[ns]")
    dims = ("init_time", "lead_time", "y", "x")
    rain = xr.Variable(dims, np.zeros((2, 3, 5, 7), np.float32), {"units": "mm h-1"})
    coords = {"init_time": inits, "lead_time": leads, "y": np.arange(5.0), "x": np.arange(7.0)}
    return xr.Dataset({"rain": rain}, coords).assign_coords(valid_time=(dims[:2], inits[:, None] + leads))


def test_valid_times_are_those_of_init_and_lead() -> None:
    check_forecasts(forecasts())
    late = forecasts().assign_coords(valid_time=forecasts()["valid_time"] + np.timedelta64(5, "m"))
    with pytest.raises(SchemaError, match="'valid_time' is not 'init_time'"):
        check_forecasts(late)


def test_leads_are_positive() -> None:
    wrong = forecasts().assign_coords(lead_time=forecasts()["lead_time"] - np.timedelta64(5, "m"))
    with pytest.raises(SchemaError, match="not positive"):
        check_forecasts(wrong)
