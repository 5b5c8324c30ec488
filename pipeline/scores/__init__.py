"""Verification scores as pure functions of mergeable sums, one file a family.

`continuous`, `categorical` and `spatial` each hold the sums of a block of frames and the scores of such sums;
`sums` lays all of them out in one labelled dataset, per init time and lead time, and names the scores of it.
"""
