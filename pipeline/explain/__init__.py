"""Attribution of a forecast to its inputs, and its figure.

In: a checkpoint and a history. Out: maps of influence.
May import: `errors`, `config`, `datasets`, `forecasting`, `report`, `models`.
"""
