"""Verification scores: pure functions of sums that can be merged, one module a family.

In: forecasts and observations. Out: sums per init time and lead time, scores of such sums, their significance.
May import: `errors`, `config`, `datasets`, `models`.

`continuous`, `categorical`, `spatial`, `structural`, `spectral` and `probabilistic` each hold the sums of a block of
frames and the scores of such sums; `strata` counts by region and intensity and divides by hour and event;
`blocks` counts a whole model, and `aggregation` lays all sums out in one labelled dataset and names the scores of it.
"""
