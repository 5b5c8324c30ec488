"""Attention patterns side by side: questions with known answers, what training on them reaches, what it costs."""
