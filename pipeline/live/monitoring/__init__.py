"""Monitoring for operators: status page, metrics, lateness, drift, verification of issued forecasts.

In: ledger, published forecasts, observations. Out: pages and numbers.
May import: what `live` may, and `live`.
"""
