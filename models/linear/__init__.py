"""Linear regression from principal components of the latest fields, on top of damped persistence.

In: histories in physical units, init times. Out: one forecast each, or quantiles.
May import: `models.layers`.
"""
