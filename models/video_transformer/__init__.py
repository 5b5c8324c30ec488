"""Transformer over space-time patches with query tokens for the future."""
