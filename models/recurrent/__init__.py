"""Recurrent encoder-forecasters: one skeleton for ConvLSTM, ConvGRU, TrajGRU, or attention in time.

In: normalised histories. Out: normalised forecasts, or members of them.
May import: `models.layers`.
"""
