"""Options of climatology: none."""

from fieldcast.models.layers.options import Options


class ClimatologyOptions(Options):
    """Climatology has nothing to choose: its statistics are prepared with the data."""
