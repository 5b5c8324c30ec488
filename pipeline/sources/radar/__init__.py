"""Archives of radar composites, one file a format.

In: files of one service. Out: rain rate in mm/h on the composite's own grid.
May import: what `sources` may.
"""
