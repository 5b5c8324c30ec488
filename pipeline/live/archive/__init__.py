"""What a schedule keeps: published forecasts, ledger of cycles, exports; every write survives a crash.

In: forecasts. Out: files under `data/live`.
May import: `errors`, `config`, `datasets`, `live.clock`.
"""
