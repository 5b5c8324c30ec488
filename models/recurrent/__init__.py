"""Recurrent encoder-forecasters: one skeleton, with ConvLSTM, ConvGRU, TrajGRU or attention as its memory in time."""
