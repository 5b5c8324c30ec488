"""Attention over space and time: the core, exact patterns, approximations, positions, and their costs.

In: tokens on a grid. Out: tokens of the same shape.
May import: `models.layers`.
"""
