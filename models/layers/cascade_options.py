"""Options of nowcasts by a cascade of scales, STEPS and S-PROG."""

from pydantic import Field

from fieldcast.models.layers.options import Options

MIN_LEVELS = 3  # of a cascade in pysteps


class CascadeOptions(Options):
    """Frames that the motion is estimated from, and the scales of a field; values are in dB, as for rain."""

    frames: int = Field(default=4, ge=3, le=100, description="latest history frames that the motion is estimated from")
    cascade_levels: int = Field(
        default=6, ge=MIN_LEVELS, le=20, description="scales that a field is taken apart into; small grids: fewer"
    )
    dry_below: float = Field(
        default=0.1, gt=0, description="values below this, in the data's unit, are dry: 0 in the forecast"
    )
