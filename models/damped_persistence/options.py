"""Options of damped persistence: none."""

from pydantic import BaseModel, ConfigDict


class DampedPersistenceOptions(BaseModel):
    """Damped persistence has nothing to choose: its coefficients are fitted on the training period."""

    model_config = ConfigDict(extra="forbid", frozen=True)
