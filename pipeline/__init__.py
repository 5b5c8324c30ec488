"""From gridded observations to compared, tracked and scheduled forecasts.

    source ─ingest→ observations ─prepare→ statistics, init times ─train@model→ checkpoint
                         │                                             │
                         └──────────────── forecast@model ←────────────┘
                                              │
                                         verify@model ─→ compare ─→ table, pictures, report

A file `pipeline/<verb>.py` is the stage `<verb>` of `dvc.yaml`; everything else is a package named by its field. Stages
import packages, never another stage: they meet through the files of `datasets.paths`. See `docs/architecture.md`.
"""
