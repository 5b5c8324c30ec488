"""Options of the linear regression from principal components."""

from itertools import pairwise
from typing import Annotated

from pydantic import Field, field_validator

from fieldcast.models.layers.outputs import ReferenceOutput

Lag = Annotated[int, Field(ge=0, le=10_000)]


class LinearOptions(ReferenceOutput):
    """Number of components and lags of the predictors; the strength of the ridge is found by cross-validation."""

    components: int = Field(default=20, ge=1, le=1000, description="leading principal components; small data: fewer")
    lags: tuple[Lag, ...] = Field(
        default=(0, 1, 2, 3, 6, 12, 23),
        min_length=1,
        description="frames before the init time, from 0; those beyond the history are left out",
    )

    @field_validator("lags")
    @classmethod
    def _from_the_init_time_back(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value[0] != 0 or any(later <= earlier for earlier, later in pairwise(value)):
            raise ValueError(f"lags are {list(value)}, expected a rising list that begins with 0, such as [0, 1, 6]")
        return value
