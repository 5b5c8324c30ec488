"""The regular time axis of an archive: the frame of a segment that fills each step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np

from fieldcast.pipeline.config.sources import IngestOptions
from fieldcast.pipeline.datasets.times import from_minutes, tolerance
from fieldcast.pipeline.errors import InputError

SHORTEST_COMMON_SECONDS = 30  # that several steps are taken for multiples of


@dataclass(frozen=True)
class Entries:
    """Frames of an archive as three parallel arrays: their time, their segment and their number within the segment."""

    time: np.ndarray
    segment: np.ndarray
    frame: np.ndarray

    def __getitem__(self, chosen: np.ndarray | slice) -> Entries:
        return Entries(self.time[chosen], self.segment[chosen], self.frame[chosen])


@dataclass(frozen=True)
class TimeAxis:
    """A regular axis, and the entries that fill it: ascending in time, those of one time in archive order."""

    times: np.ndarray  # datetime64[ns], regular
    entries: Entries
    slots: np.ndarray  # for each entry its position on the axis
    duplicates: int  # frames whose time another frame has as well

    @property
    def present(self) -> np.ndarray:
        """Return for each step of the axis whether the archive has a frame there."""
        present = np.zeros(self.times.size, bool)
        present[self.slots] = True
        return present


def fit_time_axis(
    names: Sequence[str],
    times: Sequence[np.ndarray],
    period: tuple[datetime, datetime] | None,
    step_minutes: float | None,
    rules: IngestOptions,
) -> TimeAxis:
    """Return the axis for segments with these names and times.

    The axis runs from the first to the last frame inside `period`. Its step is `step_minutes` or, without one, the most
    frequent step of the archive; frames between the steps are left out. Times are rounded to seconds, and those that
    beside the axis by less than `tolerance` are taken for it. An archive of several steps needs `step_minutes`,
    a multiple of all of them. Raise `InputError` for an empty period, times off the axis, and duplicates or disorder
    that `rules` refuse.
    """
    entries = _within(_in_order(_entries(times), names, rules), period)
    step = _own_step(entries.time, period)
    if _offsets(entries.time, step).any():
        entries, step = _snapped(entries, step, step_minutes)
    _require_regular(entries, step, names)
    stride = _stride(step, step_minutes)
    steps = (entries.time - entries.time[0]) // step
    kept = steps % stride == 0
    entries, slots = entries[kept], (steps[kept] // stride).astype(np.int64)
    if slots[-1] < 1:
        raise InputError(
            f"source.step_minutes is {step_minutes or 0:g}: one frame is left, expected 2 or more: "
            "choose a shorter step"
        )
    chosen, duplicates = _resolve(entries, names, rules)
    axis = entries.time[0] + np.arange(slots[-1] + 1) * (step * stride)
    return TimeAxis(axis.astype("datetime64[ns]"), entries[chosen], slots[chosen], duplicates)


def _entries(times: Sequence[np.ndarray]) -> Entries:
    if not sum(segment.size for segment in times):
        raise InputError("source: the archive has no frames: correct the source")
    rounded = np.concatenate(times).astype("datetime64[ns]") + np.timedelta64(500, "ms")
    return Entries(
        rounded.astype("datetime64[s]"),
        np.repeat(np.arange(len(times)), [segment.size for segment in times]),
        np.concatenate([np.arange(segment.size) for segment in times]),
    )


def _in_order(entries: Entries, names: Sequence[str], rules: IngestOptions) -> Entries:
    back = np.flatnonzero(np.diff(entries.time) < np.timedelta64(0))
    if not back.size:
        return entries
    if rules.out_of_order == "sort":
        return entries[np.argsort(entries.time, kind="stable")]
    here, before = entries[back[0] + 1 : back[0] + 2], entries[back[0] : back[0] + 1]
    raise InputError(
        f"{names[here.segment[0]]}: time {_text(here.time[0])} comes after {_text(before.time[0])} of "
        f"{names[before.segment[0]]}, expected ascending times: repair the archive or set ingest.out_of_order to sort"
    )


def _within(entries: Entries, period: tuple[datetime, datetime] | None) -> Entries:
    if period is None:
        return entries
    first, last = (np.datetime64(moment, "s") for moment in period)
    inside = (entries.time >= first) & (entries.time <= last)
    if not inside.any():
        raise InputError(
            f"source.period is [{_text(first)}, {_text(last)}]: no frame inside, the archive has frames from "
            f"{_text(entries.time[0])} to {_text(entries.time[-1])}: choose a period that meets them"
        )
    return entries[inside]


def _own_step(times: np.ndarray, period: tuple[datetime, datetime] | None) -> np.timedelta64:
    steps, counts = np.unique(np.diff(np.unique(times)), return_counts=True)
    if not steps.size:
        where = "in source.period" if period else "in the archive"
        raise InputError(f"source: a single time {where}, {_text(times[0])}, expected 2 or more: choose more")
    return np.timedelta64(steps[np.argmax(counts)])


def _offsets(times: np.ndarray, step: np.timedelta64) -> np.ndarray:
    """Return how far each time is beside the nearest step from the first time, in seconds."""
    seconds, length = (times - times[0]).astype(np.int64), int(step / np.timedelta64(1, "s"))
    return np.asarray((seconds + length // 2) % length - length // 2)


def _snapped(entries: Entries, step: np.timedelta64, step_minutes: float | None) -> tuple[Entries, np.timedelta64]:
    """Return entries and step of an archive whose times jitter, or whose steps have `step_minutes` as a multiple."""
    steps = np.diff(np.unique(entries.time)).astype(np.int64)
    nominal = _nominal(int(np.median(steps)))
    offsets = _offsets(entries.time, np.timedelta64(nominal, "s"))
    centre = int(np.median(offsets))
    if np.abs(offsets - centre).max() < tolerance(nominal):
        phase = int((entries.time[0].astype(np.int64) + centre + nominal // 2) % nominal) - nominal // 2
        moved = offsets - centre + (phase if abs(phase) < tolerance(nominal) else 0)
        return Entries(entries.time - moved.astype("timedelta64[s]"), entries.segment, entries.frame), np.timedelta64(
            nominal, "s"
        )
    common = int(np.gcd.reduce(steps))
    if step_minutes and common >= SHORTEST_COMMON_SECONDS and round(60 * step_minutes) % common == 0:
        return entries, np.timedelta64(common, "s")
    return entries, step


def _nominal(seconds: int) -> int:
    """Return the round length nearest to a typical step: of whole minutes, else of 30, 10, 5 or 1 seconds."""
    for unit in (60, 30, 10, 5):
        rounded = round(seconds / unit) * unit
        if rounded and abs(seconds - rounded) < tolerance(seconds):
            return rounded
    return seconds


def _require_regular(entries: Entries, step: np.timedelta64, names: Sequence[str]) -> None:
    off = np.flatnonzero((entries.time - entries.time[0]) % step != np.timedelta64(0))
    steps = np.unique(np.diff(np.unique(entries.time))) / np.timedelta64(1, "D")
    if off.size and steps.min() >= 28 and steps.max() <= 366:
        raise InputError(
            f"source: steps of {steps.min():g} to {steps.max():g} days: months and years have no regular step, "
            "which forecasts need: choose an archive of hours or days"
        )
    if off.size:
        raise InputError(
            f"{names[entries.segment[off[0]]]}: time {_text(entries.time[off[0]])} is not on the regular axis from "
            f"{_text(entries.time[0])} every {_minutes(step):g} minutes: repair the archive, choose another period "
            f"or set source.step_minutes to a multiple of all steps{_common_text(entries.time)}"
        )


def _stride(step: np.timedelta64, step_minutes: float | None) -> int:
    if step_minutes is None:
        return 1
    wanted = from_minutes(step_minutes)
    if wanted % step != np.timedelta64(0):
        raise InputError(
            f"source.step_minutes is {step_minutes:g}, expected a multiple of the archive's {_minutes(step):g} minutes"
        )
    return int(wanted // step)


def _resolve(entries: Entries, names: Sequence[str], rules: IngestOptions) -> tuple[np.ndarray, int]:
    """Return which entries to keep, and how many share their time with an earlier one."""
    again = np.zeros(entries.time.size, bool)
    again[1:] = entries.time[1:] == entries.time[:-1]
    count = int(again.sum())
    if count and rules.duplicates == "refuse":
        second = int(np.argmax(again))
        raise InputError(
            f"{names[entries.segment[second]]}: time {_text(entries.time[second])} is already in "
            f"{names[entries.segment[second - 1]]}: remove one or set ingest.duplicates to first, last or merge"
        )
    if rules.duplicates == "first":
        return ~again, count
    if rules.duplicates == "last":
        return np.append(~again[1:], True), count
    return np.ones(again.size, bool), count


def _common_text(times: np.ndarray) -> str:
    """Return the least multiple of the steps that occur often, as an example; nothing where there is none of a year."""
    steps, counts = np.unique(np.diff(np.unique(times)).astype(np.int64), return_counts=True)
    common = int(np.lcm.reduce(steps[counts >= max(2, counts.max() // 10)])) if (counts >= 2).any() else 0
    return f" such as {common / 60:g}" if 0 < common <= 366 * 86_400 else ""


def _minutes(step: np.timedelta64) -> float:
    return float(step / np.timedelta64(1, "m"))


def _text(moment: np.datetime64) -> str:
    return str(moment.astype("datetime64[s]")).replace("T", " ")
