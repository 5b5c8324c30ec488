"""Training of learned models.

In: prepared data and parameters. Out: weights, costs and what a run's page shows.
May import: `errors`, `config`, `datasets`, `forecasting`, `tracking`, `models`.
"""
