"""Trained models that forecast: a checkpoint folder, its network, calibration and tiles.

In: histories in physical units. Out: members in physical units.
May import: `errors`, `config`, `datasets`, `models`.
"""
