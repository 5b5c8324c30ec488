"""Attention over space and time: the core, its patterns and approximations, positions, and what they cost."""
