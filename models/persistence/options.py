"""Options of persistence: none."""

from fieldcast.models.layers.options import Options


class PersistenceOptions(Options):
    """Persistence has nothing to choose."""
