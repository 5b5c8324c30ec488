"""Report of a comparison: figures, maps, one HTML page, the terminal's table.

In: a comparison. Out: files and text.
May import: what `evaluation` may, and `evaluation`.
"""
