"""Attention weights of a forecast: recorded as they were used, and followed back to the cells of the history."""
