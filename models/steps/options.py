"""Options of the STEPS ensemble."""

from pydantic import Field

from fieldcast.models.layers.cascade_options import CascadeOptions


class StepsOptions(CascadeOptions):
    """Number of members, and what motion and noise are estimated from."""

    members: int = Field(default=10, ge=2, le=1000, description="fields that are drawn for each lead")
