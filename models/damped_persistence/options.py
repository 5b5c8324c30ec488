"""Options of damped persistence: none."""

from fieldcast.models.layers.options import Options


class DampedPersistenceOptions(Options):
    """Damped persistence has nothing to choose: its coefficients are fitted on the training period."""
