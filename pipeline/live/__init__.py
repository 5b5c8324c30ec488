"""Scheduled forecasts: live frames, cycles, published forecasts and their verification.

In: new frames and a trained model. Out: files under `data/live` alone.
May import: `errors`, `config`, `datasets`, `sources`, `forecasting`, `verification`, `tracking`, `evaluation`,
`training`, `report`, `explain`, `storms`, `models`.
"""
