"""Comparison of models: differences and their significance, verdict, promotion.

In: verification sums of all models. Out: tables, sentences, a champion.
May import: `errors`, `config`, `datasets`, `forecasting`, `verification`, `tracking`, `models`.
"""
