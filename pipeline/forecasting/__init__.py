"""Trained models: checkpoint folder, network, normalisation, calibration and tiles.

In: histories in physical units. Out: forecasts and their members in physical units.
May import: `errors`, `config`, `datasets`, `models`.
"""
