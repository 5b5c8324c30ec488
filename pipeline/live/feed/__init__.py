"""Live frames: candidates of a feed, opened as segments, checked and stored as frames.

In: a live source (files, addresses, a Zarr store, a simulation). Out: `observations/` in `data/live`.
May import: `errors`, `config`, `datasets`, `sources`, `live.archive`, `live.clock`.
"""
