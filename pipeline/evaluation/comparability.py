"""Comparability of models: equal init times, leads, thresholds and cells, and equal training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, ONLINE
from fieldcast.pipeline.verification.aggregation import SCALE, THRESHOLD, VALID_CRC, fields_of

Budget = Mapping[str, object]
CELLS = ("n", VALID_CRC)  # equal numbers and masks of valid cells: scored on the same cells
LABELS = {INIT_TIME: "init times", LEAD_TIME: "lead times", THRESHOLD: "thresholds", SCALE: "neighbourhoods"}


def incomparable(sums: Mapping[str, xr.Dataset], budgets: Mapping[str, Budget | None]) -> dict[str, list[str]]:
    """Return the reasons why models cannot be compared with the others; models without a reason are left out.

    The largest group of models with equal fields, init times, leads, thresholds, neighbourhoods and valid cells is the
    standard; so is, among the learned models, the largest group with one training budget (`budgets`; None for models
    that are not trained). A tie goes to the group of the first model.
    """
    standard = _standard([[model for model in sums if _same_terms(own, sums[model])] for own in sums.values()])
    learned = {model: budget for model in sums if (budget := budgets.get(model)) is not None}
    usual = _standard([[model for model in learned if learned[model] == budget] for budget in learned.values()])
    reasons = {}
    for model, own in sums.items():
        differences = _other_terms(own, sums[standard], standard)
        if model in learned and usual:
            differences += _other_budget(learned[model], learned[usual], usual)
        if differences:
            reasons[model] = differences
    return reasons


def learnt_on(sums: Mapping[str, xr.Dataset]) -> dict[str, list[str]]:
    """Return the reason why models cannot be promoted that learnt on while the test period was forecast."""
    why = "it learnt on through the test period (forecast.online), which a schedule does not do"
    return {model: [why] for model, own in sums.items() if ONLINE in own.attrs}


def _standard(groups: Sequence[list[str]]) -> str:
    return max(groups, key=len)[0] if groups else ""


def _same_terms(one: xr.Dataset, other: xr.Dataset) -> bool:
    return not _other_terms(one, other, "")


def _other_terms(own: xr.Dataset, standard: xr.Dataset, name: str) -> list[str]:
    """Return what differs from the `standard` of the model `name`; cells only count where all else is equal."""
    if fields_of(own) != fields_of(standard):
        return [f"scored for {', '.join(fields_of(own))} instead of {', '.join(fields_of(standard))} ({name})"]
    shared = [*(f"{field}.{THRESHOLD}" for field in fields_of(standard)), SCALE]
    differences = []
    for coordinate in (INIT_TIME, LEAD_TIME, *shared):
        here, there = (_labels(sums, coordinate) for sums in (own, standard))
        label = LABELS[coordinate.rsplit(".", 1)[-1]]
        if here.size != there.size:
            differences.append(f"{here.size} {label} instead of {there.size} ({name})")
        elif not np.array_equal(here, there):
            differences.append(f"other {label} than {name}")
    if not differences:
        variables = [f"{field}.{cells}" for field in fields_of(standard) for cells in CELLS]
        if any(not np.array_equal(own[variable], standard[variable]) for variable in variables):
            differences.append(f"scored on other cells than {name}")
    return differences


def _labels(sums: xr.Dataset, coordinate: str) -> np.ndarray:
    return np.asarray(sums.coords[coordinate].values if coordinate in sums.coords else ())


def _other_budget(own: Budget, usual: Budget, name: str) -> list[str]:
    keys = dict.fromkeys(chain(usual, own))
    return [
        f"trained with {key.replace('_', ' ')} {_amount(own.get(key))} instead of {_amount(usual.get(key))} ({name})"
        for key in keys
        if own.get(key) != usual.get(key)
    ]


def _amount(value: object) -> str:
    return "without limit" if value is None else f"{value}"
