"""Artefacts of data: their names and schemas, and the Zarr stores that hold them.

In: arrays, times, parameters. Out: checked observations, forecasts, frames, init times.
May import: `errors`, `config`.
"""
