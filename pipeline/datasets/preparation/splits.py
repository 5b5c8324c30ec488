"""Init times of each split and the order of channels, from names and times alone."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fieldcast.pipeline.config import Prepare, Split
from fieldcast.pipeline.datasets.frames import sample_steps
from fieldcast.pipeline.errors import InputError


def channel_order(names: list[str], options: Prepare) -> list[str]:
    """Return the variables as channels, targets first; raise `InputError` where an option names an unknown one."""
    targets = options.targets or names
    for key, given in (("targets", targets), ("transform", list(options.transform))):
        for name in given:
            if name not in names:
                raise InputError(f"params.yaml: prepare.{key} names {name!r}, the observations have {', '.join(names)}")
    return [*targets, *(name for name in names if name not in targets)]


def select_init_times(
    times: np.ndarray, there: np.ndarray, options: Prepare, history: int, horizon: int
) -> pd.DataFrame:
    """Return (init_time, split) of all init times whose history and horizon are complete enough.

    `there` says for each of `times` whether its frame counts as present. Raises `InputError` when a split has none.
    """
    missing = np.concatenate([[0], np.cumsum(~there)])
    rows = []
    for name, split in options.splits.in_order():
        index = np.flatnonzero(_inside(times, split))[:: split.every_steps]
        index = index[(index >= history - 1) & (index + horizon < times.size)]
        before, whole = sample_steps(index, history), sample_steps(index, history, horizon)
        in_history = missing[before.stop] - missing[before.start]
        in_horizon = missing[whole.stop] - missing[before.stop]
        complete = (in_history <= options.max_missing_history) & (in_horizon <= options.max_missing_horizon)
        if not complete.any():
            raise InputError(_no_init_times(name, split, times, there, history + horizon))
        rows += [(time, name) for time in times[index[complete]]]
    return pd.DataFrame(rows, columns=["init_time", "split"])


def _inside(times: np.ndarray, split: Split) -> np.ndarray:
    return (times >= np.datetime64(split.start)) & (times <= np.datetime64(split.end))


def _no_init_times(name: str, split: Split, times: np.ndarray, there: np.ndarray, needed: int) -> str:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], there.astype(int), [0]])))
    longest = int((edges[1::2] - edges[::2]).max(initial=0))
    if 0 < longest < needed:
        return (
            f"params.yaml: sample.history + sample.horizon is {needed} frames, longer than the longest event of"
            f" {longest} consecutive frames with data; choose shorter ones"
        )
    return (
        f"params.yaml: prepare.splits.{name} ({split.start} to {split.end}) has no init time with a complete history"
        f" and horizon: {int(there[_inside(times, split)].sum())} frames with data are in it (a frame needs a share of"
        f" valid cells of at least prepare.min_valid_share); the observations run from {span(times)}"
    )


def span(times: np.ndarray) -> str:
    """Return the first and last of `times` in words."""
    return f"{times[0].astype('datetime64[s]')} to {times[-1].astype('datetime64[s]')}"
