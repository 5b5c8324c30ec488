"""Regression in the moving frame: the latest field at several scales, moved along its flow, weighted by lead.

In: histories in physical units. Out: one forecast each, or quantiles.
May import: `models.layers`.
"""
