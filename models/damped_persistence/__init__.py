"""Damped persistence: the latest anomaly, which fades with lead time.

In: histories in physical units. Out: one forecast each.
May import: `models.layers`.
"""
