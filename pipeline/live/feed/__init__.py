"""Feed of new frames: discovery at the source, reading, checks and storage.

In: a live source. Out: the store of live observations.
May import: `errors`, `config`, `datasets`, `sources`, `live.archive`, `live.clock`.
"""
