"""Options of the STEPS ensemble."""

from pydantic import BaseModel, ConfigDict, Field

MIN_LEVELS = 3  # of a cascade in pysteps


class StepsOptions(BaseModel):
    """Number of members, and frames that motion and noise are estimated from; values are in dB, as for rain."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    members: int = Field(default=10, ge=2, description="fields that are drawn for each lead")
    frames: int = Field(default=4, ge=3, description="latest history frames that the motion is estimated from")
    cascade_levels: int = Field(
        default=6, ge=MIN_LEVELS, description="scales that a field is taken apart into; small grids: fewer"
    )
    dry_below: float = Field(
        default=0.1, gt=0, description="values below this, in the data's unit, are dry: 0 in the forecast"
    )
