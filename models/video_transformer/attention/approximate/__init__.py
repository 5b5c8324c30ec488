"""Patterns that estimate attention over all tokens, or sample it, at less than the square of their number."""
