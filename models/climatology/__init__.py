"""Climatology: the mean of the training period at the valid time.

In: init times. Out: one forecast each, in physical units.
May import: `models.layers`.
"""
