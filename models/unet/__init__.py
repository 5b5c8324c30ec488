"""U-Net: all frames at once, on grids ever coarser and back, with what each scale has seen.

In: normalised histories. Out: normalised forecasts, or members of them.
May import: `models.layers`.
"""
