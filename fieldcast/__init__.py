"""From gridded observations to compared, tracked and scheduled forecasts.

`fieldcast.pipeline` and `fieldcast.models` are the folders `pipeline/` and `models/` of the repository.
"""
