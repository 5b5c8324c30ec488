"""MLflow: runs, registered models, and the model as MLflow serves it.

In: scores, files, checkpoints. Out: records in the tracker; a tracker that is down costs no work.
May import: `errors`, `config`, `datasets`, `forecasting`, `verification`, `models`.
"""
