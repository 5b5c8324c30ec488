"""Report of a comparison: figures, maps, one HTML page, the table in the terminal.

In: a comparison. Out: files and text.
May import: `errors`, `config`, `datasets`, `forecasting`, `verification`, `tracking`, `evaluation`, `models`.
"""
