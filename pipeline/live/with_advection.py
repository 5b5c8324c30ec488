"""Imported once by the server that a rehearsal's schedulers are forked from: advection takes seconds to load."""

from models.motion import load_pysteps

load_pysteps()
