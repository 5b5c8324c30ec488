"""STEPS: an ensemble of extrapolations, perturbed scale by scale.

In: histories in physical units. Out: an ensemble of forecasts each.
May import: `models.layers`.
"""
