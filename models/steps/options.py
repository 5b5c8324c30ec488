"""Options of the STEPS ensemble."""

from pydantic import Field

from fieldcast.models.layers.options import Options

MIN_LEVELS = 3  # of a cascade in pysteps


class StepsOptions(Options):
    """Number of members, and frames that motion and noise are estimated from; values are in dB, as for rain."""

    members: int = Field(default=10, ge=2, le=1000, description="fields that are drawn for each lead")
    frames: int = Field(default=4, ge=3, le=100, description="latest history frames that the motion is estimated from")
    cascade_levels: int = Field(
        default=6, ge=MIN_LEVELS, le=20, description="scales that a field is taken apart into; small grids: fewer"
    )
    dry_below: float = Field(
        default=0.1, gt=0, description="values below this, in the data's unit, are dry: 0 in the forecast"
    )
