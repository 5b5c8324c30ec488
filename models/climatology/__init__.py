"""Climatology: what is usual at the valid time."""
