"""Advection: the latest field, moved along with the motion of the history.

In: histories in physical units. Out: one forecast each.
May import: `models.layers`.
"""
