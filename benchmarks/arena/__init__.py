"""Attention patterns side by side: questions with known answers, skill after training on them, and its cost."""
