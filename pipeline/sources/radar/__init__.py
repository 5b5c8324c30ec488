"""Archives of radar composites, one module a format.

In: files of one weather service. Out: rain rate in mm/h on the composite's own grid.
May import: what `sources` may.
"""
