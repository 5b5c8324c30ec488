"""Advection: the latest field moves on as it did in the history."""
