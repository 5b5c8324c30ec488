"""Persistence: the latest field at every lead time.

In: histories in physical units. Out: one forecast each.
May import: `models.layers`.
"""
