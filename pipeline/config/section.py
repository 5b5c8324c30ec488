"""The base of all sections of `params.yaml`, and the ranges of numbers that many of them have."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

YEARS = (1678, 2261)  # what 64 bits of nanoseconds hold
DAY_MINUTES = 1440


def _time(value: Any) -> Any:
    """Return the time that a text names; a date is its midnight."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise ValueError("expected a time such as 2010-08-26T06:00") from None
    if isinstance(value, datetime) and not YEARS[0] <= value.year <= YEARS[1]:
        raise ValueError(f"expected a year from {YEARS[0]} to {YEARS[1]}")
    return value


def _one_line(value: Path) -> Path:
    if not str(value).isprintable():
        raise ValueError("expected a path of printable characters")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Count = Annotated[int, Field(gt=0, le=1_000_000)]  # of what is done or held one after the other
Cells = Annotated[int, Field(gt=0, le=100_000)]  # along an axis of a grid
Frames = Annotated[int, Field(gt=0, le=10_000)]
Minutes = Annotated[int, Field(gt=0, le=366 * DAY_MINUTES)]
Amount = Annotated[float, Field(gt=0, le=1e12)]  # in units of a variable
Text = Annotated[str, Field(min_length=1, max_length=2000, pattern=r"^[^\x00-\x1f]+$")]  # one line of it
Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f/]+$")]  # of a variable
Amounts = Amount | dict[Name, Amount]  # by variable; a plain number is of the first one
Folder = Annotated[Path, AfterValidator(_one_line)]
Time = Annotated[datetime, BeforeValidator(_time)]


def amount_of(amounts: Amounts | None, name: str, names: Sequence[str]) -> float | None:
    """Return the amount of the variable `name`, one of `names`; None where it has none."""
    if isinstance(amounts, dict):
        return amounts.get(name)
    return amounts if name == names[0] else None


class Section(BaseModel):
    """A section of `params.yaml`: unknown keys are refused, numbers are finite, values do not change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
