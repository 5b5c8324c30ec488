"""New frames: found at the source, read, checked and kept.

In: a live source. Out: the store of live observations.
May import: `errors`, `config`, `datasets`, `sources`, `live.archive`, `live.clock`.
"""
