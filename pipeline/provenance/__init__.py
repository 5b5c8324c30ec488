"""The chain from an issued forecast back to code and data, each link of it computed again.

In: a published forecast or a copy of it, and the project. Out: what each link says, and whether it holds.
May import: `errors`, `config`, `datasets`, `forecasting`, `tracking`, `live`.
"""
