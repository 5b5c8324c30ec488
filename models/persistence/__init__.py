"""Persistence: nothing changes."""
