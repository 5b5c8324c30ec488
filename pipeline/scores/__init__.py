"""Verification scores as pure functions of mergeable sums, one file a family.

`continuous`, `categorical`, `spatial`, `structural`, `spectral` and `probabilistic` each hold the sums of a block of
frames and the scores of such sums; `groups` counts by region and intensity and divides by hour and event; `sums` lays
all of them out in one labelled dataset, per init time and lead time, and names the scores of it.
"""
