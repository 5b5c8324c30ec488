"""Import for the server that a replay's schedulers are forked from: advection takes seconds to load."""

from fieldcast.models.advection import forecast

assert forecast
