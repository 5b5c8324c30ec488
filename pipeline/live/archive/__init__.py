"""Archive of a schedule: published forecasts, ledger of cycles, exports; every write survives a crash.

In: forecasts and records of cycles. Out: files under `data/live`.
May import: `errors`, `config`, `datasets`, `live.clock`.
"""
