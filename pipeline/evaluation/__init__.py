"""Comparison of models: differences with their certainty, verdict, promotion.

In: sums of scores of all models. Out: tables, sentences, a champion.
May import: `errors`, `config`, `datasets`, `verification`, `tracking`, `forecasting`.
"""
