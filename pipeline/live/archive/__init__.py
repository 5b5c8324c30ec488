"""Published forecasts, ledger of cycles and exports; every write survives a crash.

In: forecasts, the state of each cycle. Out: `forecasts/`, `copies/`, `latest.json`, `ledger.sqlite` in `data/live`.
May import: `errors`, `config`, `datasets`, `live.clock`.
"""
