"""Attribution of a forecast to its inputs, and its figure.

In: a checkpoint and a history. Out: maps of sensitivity, a picture.
May import: `errors`, `config`, `datasets`, `forecasting`, `verification`, `tracking`, `evaluation`, `report`, `models`.
"""
