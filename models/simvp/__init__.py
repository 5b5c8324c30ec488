"""SimVP: encoder, translator of all steps at once, decoder; convolutions without recurrence.

In: normalised histories. Out: normalised forecasts, or members of them.
May import: `models.layers`.
"""
