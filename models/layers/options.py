"""The base of the options of all models."""

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

LARGEST = 65_536  # no size or number of anything in a model is larger


class Options(BaseModel):
    """Options of one kind of model: unknown ones are refused, numbers are finite and of a size that can be."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _possible_sizes(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if isinstance(number, int | float) and abs(number) > LARGEST:
                    raise ValueError(f"{name} is {number}, expected at most {LARGEST}")
        return self
