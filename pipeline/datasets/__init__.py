"""Data artefacts: paths, schemas and the Zarr stores that hold them.

In: arrays, times, parameters. Out: checked observations, forecasts, frames and init times.
May import: `errors`, `config`, `models`.
"""
