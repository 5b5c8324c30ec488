"""Options of the estimate of motion, for all models that move fields."""

from typing import Literal

from pydantic import Field

from fieldcast.models.layers.options import Options


class MotionOptions(Options):
    """Frames that the motion of a field is estimated from, and how their values are scaled for it."""

    frames: int = Field(default=4, ge=2, le=100, description="latest history frames that the motion is estimated from")
    transform: Literal["db", "identity"] = Field(
        default="db", description="db: 10 log10, for rain and other amounts; identity: standardised, for the rest"
    )
    dry_below: float = Field(
        default=0.1, gt=0, description="db only: values below this, in the data's unit, are dry and carry no motion"
    )
