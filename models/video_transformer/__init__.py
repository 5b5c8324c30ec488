"""Video transformer: attention over patches in space and time, with query tokens for the future.

In: normalised histories. Out: normalised forecasts, or members of them.
May import: `models.layers`.
"""
