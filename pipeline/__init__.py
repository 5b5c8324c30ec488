"""fieldcast: from gridded observations to compared and tracked forecasts. Every verb is a stage, every noun a library.

    source ─ingest→ observations ─prepare→ statistics, init times ─train@model→ checkpoint
                         │                                             │
                         └──────────────── forecast@model ←────────────┘
                                              │
                                         verify@model ─→ compare ─→ table, pictures, report

Stages read `params.yaml` through `config`, meet only through the files of `paths`, and import no other stage.
`sources/` reads archives, `store` owns Zarr, `tracking` owns MLflow, `checkpoint` is a model as a folder, `samples`
makes training batches, `fit` and `module` train on them, `scores/` verifies.
"""
