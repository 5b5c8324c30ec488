"""Damped persistence: today's anomaly fades with lead time."""
