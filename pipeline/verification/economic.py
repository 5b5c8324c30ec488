"""Economic value of forecasts to one who can protect: what they save, relative to what perfect forecasts would.

Protection costs C and avoids a loss L; the user acts on an event when its probability reaches the ratio C / L, in the
units of L. Sums are made of those of the contingency table, or of the reliability of probabilities, which verification
keeps: they are linear in init times, as all sums are. Richardson (2000), Quart. J. Roy. Meteor. Soc. 126; Wilks (2019),
ch. 9.
"""

from __future__ import annotations

import math

import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME
from fieldcast.pipeline.verification import categorical
from fieldcast.pipeline.verification.probabilistic import BINS
from fieldcast.pipeline.verification.ratios import ratio

COUNTS = (*categorical.SUMS, "reliability_weight", "reliability_events")  # that `value_sums` takes, the last of members
SUMS = ("expense", "expense_never", "expense_always", "expense_perfect")  # in losses: C / L for acting, 1 for an event


def value_sums(sums: xr.Dataset, cost_loss: float) -> xr.Dataset:
    """Return the sums `SUMS` of a user with this ratio of cost to loss, from those of events (plain names).

    A model with members gives probabilities, kept in tenths: who acts at p >= C / L acts on the tenths that begin
    there, which is exact for ten members, and for others where the ratio is a tenth. Other models say yes or no.
    """
    events = sums["hits"] + sums["misses"]
    if "reliability_weight" in sums:
        first = math.ceil(round(cost_loss * BINS, 9))
        bins = str(sums["reliability_weight"].dims[-1])
        chosen = {bins: slice(first, None)}
        acted = sums["reliability_weight"].isel(chosen).sum(bins)
        hits = sums["reliability_events"].isel(chosen).sum(bins)
    else:
        acted, hits = sums["hits"] + sums["false_alarms"], sums["hits"]
    cases = events + sums["false_alarms"] + sums["correct_negatives"]
    expenses = (cost_loss * acted + events - hits, events, cost_loss * cases, cost_loss * events)
    return xr.Dataset(dict(zip(SUMS, expenses, strict=True)))


def value(sums: xr.Dataset) -> xr.DataArray:
    """Return the relative economic value, (E_climate − E) / (E_climate − E_perfect): 1 is perfect, below 0 a loss.

    E is the mean expense of the user, E_climate that of always or of never acting, whichever is less. Expenses are
    added up over init times first. NaN where the event was never or always observed.
    """
    expense, never, always, perfect = (sums[name].sum(INIT_TIME) for name in SUMS)
    climate = never.where(never < always, always)
    return ratio(climate - expense, climate - perfect)
