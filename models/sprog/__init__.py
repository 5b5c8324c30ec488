"""S-PROG: one forecast of rain whose scales fade as they lose their predictability.

In: histories in physical units. Out: one forecast each.
May import: `models.layers`.
"""
