"""Convolutional model without recurrence: encoder, translator of all steps at once, decoder."""
