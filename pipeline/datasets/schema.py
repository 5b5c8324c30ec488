"""Names of dimensions, coordinates and units, and the checks every artefact passes on its way in and out.

Everything here works on labels and shapes; nothing reads a field into memory.
"""

from __future__ import annotations

import re

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.times import minutes_of
from fieldcast.pipeline.errors import SchemaError

TIME, INIT_TIME, LEAD_TIME, VALID_TIME, Y, X = "time", "init_time", "lead_time", "valid_time", "y", "x"
MEMBER = "member"
FRAME_PRESENT = "frame_present"
GRID_MAPPING = "spatial_ref"
LATITUDE, LONGITUDE = "latitude", "longitude"  # of cells `(y, x)`, of grids whose axes are no degrees
HORIZONTAL = (Y, X, GRID_MAPPING, LATITUDE, LONGITUDE)  # coordinates that go wherever a grid goes
CONVENTIONS = "CF-1.11"
TIME_UNITS = "seconds since 1970-01-01"
RAIN_RATE_UNITS = "mm h-1"
DECISIONS = "decisions"  # attribute of a variable with members: from how many on an event is forecast, as JSON
ONLINE = "online_learning_rate"  # attribute of forecasts, and of their sums, by a network that learnt on meanwhile
MIRRORED = "mirrored"  # folder, in a store, of forecasts of fields that the model saw flipped; and of their errors


def refused_name(name: str) -> str:
    """Return the name of the variable `(time,)` with the number of values of `name` that were refused as impossible."""
    return f"{name}_refused"


def field_names(dataset: xr.Dataset) -> list[str]:
    """Return the names of the physical fields: the data variables on the (y, x) grid, in stored order."""
    return [str(name) for name, array in dataset.data_vars.items() if {Y, X} <= set(array.dims)]


def check_observations(observations: xr.Dataset) -> xr.Dataset:
    """Return `observations` unchanged when they follow the schema, else raise `SchemaError`.

    The schema: at least one float32 variable `(time, y, x)` with `units`; `time` strictly ascending, regular,
    datetime64; a boolean `frame_present (time)`; 1-D `y` and `x`.
    """
    _require_dims(observations, (TIME, Y, X), "observations")
    if FRAME_PRESENT not in observations or observations[FRAME_PRESENT].dims != (TIME,):
        raise SchemaError(f"observations: no boolean '{FRAME_PRESENT}' along '{TIME}'")
    _require_fields(observations, (TIME, Y, X), "observations")
    step_of(observations)
    return observations


def check_forecasts(forecasts: xr.Dataset) -> xr.Dataset:
    """Return `forecasts` unchanged when they follow the schema, else raise `SchemaError`.

    The schema: float32 variables `(init_time, lead_time, y, x)` with `units`, or all of them `(init_time, lead_time,
    member, y, x)` with members 1 … m; `lead_time` a positive timedelta; `valid_time (init_time, lead_time)` equal to
    `init_time + lead_time`.
    """
    dims = (INIT_TIME, LEAD_TIME, *([MEMBER] if MEMBER in forecasts.dims else []), Y, X)
    _require_dims(forecasts, dims, "forecasts")
    _require_fields(forecasts, dims, "forecasts")
    if not np.issubdtype(forecasts[LEAD_TIME].dtype, np.timedelta64):
        raise SchemaError(f"forecasts: '{LEAD_TIME}' is {forecasts[LEAD_TIME].dtype}, expected a timedelta")
    if (forecasts[LEAD_TIME].values <= np.timedelta64(0)).any():
        raise SchemaError(f"forecasts: '{LEAD_TIME}' has values that are not positive")
    if VALID_TIME not in forecasts.coords:
        raise SchemaError(f"forecasts: no coordinate '{VALID_TIME}'")
    if not (forecasts[VALID_TIME] == forecasts[INIT_TIME] + forecasts[LEAD_TIME]).all():
        raise SchemaError(f"forecasts: '{VALID_TIME}' is not '{INIT_TIME}' + '{LEAD_TIME}'")
    members = forecasts.sizes.get(MEMBER, 0)
    if members and not np.array_equal(forecasts.get(MEMBER, []), np.arange(1, members + 1)):
        raise SchemaError(f"forecasts: '{MEMBER}' is not 1 to {members}")
    return forecasts


def check_scores(scores: xr.Dataset) -> xr.Dataset:
    """Return `scores` unchanged when every variable keeps `lead_time`, else raise `SchemaError`."""
    _require_dims(scores, (LEAD_TIME,), "scores")
    for name, array in scores.data_vars.items():
        if LEAD_TIME not in array.dims:
            raise SchemaError(f"scores: '{name}' has dimensions {array.dims}, expected '{LEAD_TIME}' among them")
    return scores


def step_of(observations: xr.Dataset) -> np.timedelta64:
    """Return the step of the regular time axis; raise `SchemaError` when it is not regular and ascending."""
    times = observations[TIME].values
    if not np.issubdtype(times.dtype, np.datetime64):
        raise SchemaError(f"'{TIME}' is {times.dtype}, expected datetime64")
    if times.size < 2:
        raise SchemaError(f"'{TIME}' has {times.size} value(s), expected at least 2")
    steps = np.unique(np.diff(times))
    if steps.size != 1 or steps[0] <= np.timedelta64(0):
        raise SchemaError(f"'{TIME}' is not regular and ascending: steps of {steps[:3]}")
    return np.timedelta64(steps[0])


def lead_minutes(dataset: xr.Dataset) -> list[float]:
    """Return the lead times in minutes, integers where they are whole."""
    return [minutes_of(lead) for lead in dataset[LEAD_TIME].values]


def lead_times(horizon: int, step: np.timedelta64) -> np.ndarray:
    """Return the `horizon` lead times of a model that advances by `step`: step, 2 step, … (timedelta64[ns])."""
    return (np.arange(1, horizon + 1) * step).astype("timedelta64[ns]")


def slug(units: str) -> str:
    """Return `units` as part of a name: 'mm h-1' -> 'mm_h', 'K' -> 'k'."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"-?\d", "", units.lower())).strip("_")


def _require_dims(dataset: xr.Dataset, dims: tuple[str, ...], what: str) -> None:
    missing = [dim for dim in dims if dim not in dataset.dims]
    if missing:
        raise SchemaError(f"{what}: no dimension {missing}, found {list(dataset.sizes)}, expected {list(dims)}")


def _require_fields(dataset: xr.Dataset, dims: tuple[str, ...], what: str) -> None:
    names = field_names(dataset)
    if not names:
        raise SchemaError(f"{what}: no variable on the grid, expected at least one with dimensions {dims}")
    for name in names:
        array = dataset[name]
        if array.dims != dims:
            raise SchemaError(f"{what}: '{name}' has dimensions {array.dims}, expected {dims}")
        if array.dtype != np.float32:
            raise SchemaError(f"{what}: '{name}' is {array.dtype}, expected float32")
        if "units" not in array.attrs:
            raise SchemaError(f"{what}: '{name}' has no 'units' attribute")
