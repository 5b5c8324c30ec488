"""Options of S-PROG."""

from fieldcast.models.layers.cascade_options import CascadeOptions


class SprogOptions(CascadeOptions):
    """What the motion and the memory of each scale are estimated from."""
