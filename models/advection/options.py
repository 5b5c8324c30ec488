"""Options of the advection forecast."""

from fieldcast.models.layers.motion_options import MotionOptions


class AdvectionOptions(MotionOptions):
    """Options of the estimate of motion; the extrapolation itself has none."""
