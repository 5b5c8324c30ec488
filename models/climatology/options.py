"""Options of climatology: none."""

from pydantic import BaseModel, ConfigDict


class ClimatologyOptions(BaseModel):
    """Climatology has nothing to choose: its statistics are prepared with the data."""

    model_config = ConfigDict(extra="forbid", frozen=True)
