"""Training of models: samples, schedules, the fit of networks, and its memory.

In: prepared data and parameters. Out: weights, and the metrics and costs of the training.
May import: `errors`, `config`, `datasets`, `forecasting`, `verification`, `tracking`, `models`.
"""
