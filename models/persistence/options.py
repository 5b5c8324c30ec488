"""Options of persistence: none."""

from pydantic import BaseModel, ConfigDict


class PersistenceOptions(BaseModel):
    """Persistence has nothing to choose."""

    model_config = ConfigDict(extra="forbid", frozen=True)
