"""Options of the regression in the moving frame."""

from typing import Annotated

from pydantic import Field

from fieldcast.models.layers.motion_options import MotionOptions
from fieldcast.models.layers.outputs import ReferenceOutput

Scale = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LagrangianRegressionOptions(MotionOptions, ReferenceOutput):
    """Scales that the latest field is taken apart into, the estimate of motion, and quantiles or one value."""

    scales: tuple[Scale, ...] = Field(
        default=(0.0, 1.0, 2.0, 4.0, 8.0),
        min_length=1,
        description="standard deviations of Gaussian blurs of the latest field, in cells; 0: the field itself",
    )
