"""Observations of stations, which are the truth for the places of their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fieldcast.pipeline.errors import InputError

NAME, TIME = "name", "time"


def read_stations(path: Path, variables: Sequence[str]) -> pd.DataFrame:
    """Return a file of stations: a column for each of `variables` that it has, indexed by name and time (UTC).

    Expected is CSV with the columns `name`, `time` and one or more variables in the units of the forecast; an empty
    field is missing. Raise `InputError` with column, row and value for anything else.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}), named by live.stations") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise InputError(
            f"{path}: is no table ({error}): expected CSV with columns name, time, {variables[0]}"
        ) from None
    found = [name for name in variables if name in table]
    if missing := [name for name in (NAME, TIME) if name not in table] or ([] if found else [variables[0]]):
        raise InputError(f"{path}: has columns {', '.join(table.columns)}, expected {missing[0]} too: add it")
    times = pd.to_datetime(table[TIME], utc=True, errors="coerce", format="ISO8601")
    _require(path, TIME, table[TIME], times.notna(), "a time such as 2024-06-01T06:05Z")
    index = pd.MultiIndex.from_arrays([table[NAME], times.dt.tz_localize(None)], names=[NAME, TIME])
    twice = index.duplicated()
    _require(path, TIME, table[NAME] + " at " + table[TIME], ~pd.Series(twice), "each name and time once")
    values = {}
    for name in found:
        numbers = pd.to_numeric(table[name].str.strip().replace("", "nan"), errors="coerce")
        blank = table[name].str.strip().str.lower().isin(["", "nan"])
        _require(path, name, table[name], np.isfinite(numbers) | blank, "a number, or nothing where it is missing")
        values[name] = numbers.to_numpy(np.float64)
    return pd.DataFrame(values, index=index)


def observed_at(stations: pd.DataFrame, name: str, times: np.ndarray, variables: Sequence[str]) -> np.ndarray:
    """Return a station's values (time, variable), NaN where there is none."""
    here = stations.loc[[name]].droplevel(NAME) if name in stations.index.get_level_values(NAME) else None
    if here is None:
        return np.full((len(times), len(variables)), np.nan)
    return np.asarray(here.reindex(index=pd.DatetimeIndex(times), columns=list(variables)).to_numpy(np.float64))


def names_of(stations: pd.DataFrame) -> set[str]:
    """Return the names of all stations."""
    return set(stations.index.get_level_values(NAME))


def _require(path: Path, column: str, values: pd.Series, good: pd.Series, expected: str) -> None:
    wrong = np.flatnonzero(~good.to_numpy())
    if wrong.size:
        raise InputError(
            f"{path}: row {wrong[0] + 2}: {column} is '{values.iloc[wrong[0]]}', expected {expected}: correct the row"
        )
