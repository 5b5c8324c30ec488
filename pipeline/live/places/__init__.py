"""Forecasts for places: points and areas of a GeoJSON file, with calibrated ranges, copies and verification.

In: members of a forecast, a file of places, observations of stations. Out: time series and tables.
May import: what `live` may, and `live`.
"""
