"""Verification scores as pure functions of mergeable sums, one file a family.

In: forecasts and observations. Out: sums per init time and lead time, scores of such sums, their certainty.
May import: `errors`, `config`, `datasets`.

`continuous`, `categorical`, `spatial`, `structural`, `spectral` and `probabilistic` each hold the sums of a block of
frames and the scores of such sums; `strata` counts by region and intensity and divides by hour and event;
`aggregation` lays all of them out in one labelled dataset and names the scores of it.
"""
