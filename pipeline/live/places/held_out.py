"""Ranges fitted on the validation period and measured on the test period, which nothing else has seen."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table
from tqdm import tqdm

from fieldcast.pipeline.datasets.frames import FrameReader, read_init_times, thinned
from fieldcast.pipeline.datasets.labels import readable
from fieldcast.pipeline.datasets.paths import OBSERVATIONS, PREPARED
from fieldcast.pipeline.datasets.signature import check_signature
from fieldcast.pipeline.forecasting import calibration
from fieldcast.pipeline.live.deployed_model import DeployedModel
from fieldcast.pipeline.live.places.areas import Place
from fieldcast.pipeline.live.places.ranges import (
    Quantity,
    RangeCalibration,
    Ranges,
    inside,
    narrowed,
    quantified,
    quantities_of,
    ranked,
)
from fieldcast.pipeline.report.style import spread_out
from fieldcast.pipeline.verification.probabilistic import crps_of_sorted

INIT_TIMES = 200  # of a period, at most
SPREADS = (1.0, 0.5, 0.25, 0.0)  # of members about their mean, that are tried
SHOWN_LEADS = 3


@dataclass(frozen=True)
class Cases:
    """Forecasts and observations of areas of one shape: all over the grid, of all init times of a period."""

    ranks: np.ndarray  # (init_time, COUNT, lead, quantity, n), not calibrated
    observed: np.ndarray  # (init_time, lead, quantity, n)


@dataclass(frozen=True)
class Measured:
    """How ranges did on the test period, of one shape, quantity and lead; `raw` is without the calibration."""

    places: str
    cells: float
    quantity: str
    units: str
    lead_minutes: float
    cases: int
    coverage: float
    coverage_raw: float
    crps: float
    crps_raw: float
    mean_absolute_error: float  # of the median of what the model says


def shapes_of(places: Sequence[Place]) -> dict[str, list[Place]]:
    """Return the places by the key of their shape."""
    shapes: dict[str, list[Place]] = {}
    for place in places:
        shapes.setdefault(place.shape_key, []).append(place)
    return shapes


def fit(model: DeployedModel, places: Sequence[Place]) -> Ranges:
    """Return the calibrations of ranges by forecasts of the validation period."""
    quantities = quantities_of(model.config.channels[: model.config.targets])
    cases = cases_of(model, "validation", places)
    return Ranges(model.digest, {key: fit_shape(of_shape, quantities) for key, of_shape in cases.items()})


def fit_shape(cases: Cases, quantities: Sequence[Quantity]) -> RangeCalibration:
    """Return the calibration of places of one shape, with the spread of `SPREADS` that has the lowest CRPS."""
    found = []
    for spread in SPREADS:
        drawn = narrowed(np.moveaxis(cases.ranks, 1, 0), spread).swapaxes(0, 1)[:, None, ..., None, :]
        blocks = zip(drawn, cases.observed[:, None, ..., None, :], strict=True)
        offsets = calibration.fit(blocks, len(cases.observed), dry_stays=False)
        found.append(RangeCalibration(spread, offsets))
    raw, observed = _pooled(cases)
    scores = np.array([_crps_by_quantity(each(raw, quantities), observed) for each in found])
    return found[int((scores / np.maximum(scores[0], 1e-12)).mean(axis=1).argmin())]


def _crps_by_quantity(ranks: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Return the mean CRPS (quantity,) of quantiles (COUNT, lead, quantity, case)."""
    crps = crps_of_sorted(ranks.reshape(len(ranks), -1), observed.ravel()).reshape(observed.shape)
    return np.asarray(np.nanmean(crps, axis=(0, 2)))


def _pooled(cases: Cases) -> tuple[np.ndarray, np.ndarray]:
    """Return quantiles (COUNT, lead, quantity, case) and observed (lead, quantity, case) of all init times."""
    ranks = np.moveaxis(cases.ranks, 0, -1).reshape(*cases.ranks.shape[1:4], -1)
    return ranks, np.moveaxis(cases.observed, 0, -1).reshape(*ranks.shape[1:])


def measure(model: DeployedModel, places: Sequence[Place], ranges: Ranges) -> list[Measured]:
    """Return how ranges do on the test period."""
    quantities = quantities_of(model.config.channels[: model.config.targets])
    shapes = shapes_of(places)
    return [
        measured
        for key, cases in cases_of(model, "test", places).items()
        for measured in _measured(shapes[key], cases, ranges.of_shape[key], quantities, model.config.step_minutes)
    ]


def cases_of(model: DeployedModel, split: str, places: Sequence[Place]) -> dict[str, Cases]:
    """Return forecasts of a period by the key of a shape; raise `InputError` where its observations do not fit."""
    shapes = {key: of_shape[0] for key, of_shape in shapes_of(places).items()}
    found: Mapping[str, list[tuple[np.ndarray, np.ndarray]]] = {key: [] for key in shapes}
    config = model.config
    quantities = quantities_of(config.channels[: config.targets])
    for members, observed in _forecasts(model, split):
        for key, place in shapes.items():
            forecast, truth = (
                quantified(place.moved(fields.astype(np.float64)), quantities, config.step_minutes)
                for fields in (members, observed)
            )
            found[key].append((ranked(forecast).astype(np.float32), truth.astype(np.float32)))
    return {key: Cases(*(np.stack(side) for side in zip(*cases, strict=True))) for key, cases in found.items()}


def table(rows: Sequence[Measured]) -> Table:
    """Return what was measured at some leads, for a terminal of 80 columns; the range is that of 80 %."""
    lines = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    lines.add_column("place", no_wrap=True, overflow="ellipsis", max_width=18)
    lines.add_column("quantity", no_wrap=True)
    for title in ("lead", "in range", "raw", "CRPS", "raw"):
        lines.add_column(title, justify="right", no_wrap=True)
    leads = sorted({row.lead_minutes for row in rows})
    shown = [leads[k] for k in spread_out(SHOWN_LEADS, len(leads))]
    for row in (row for row in rows if row.lead_minutes in shown):
        coverage, crps = (row.coverage, row.coverage_raw), (row.crps, row.crps_raw)
        numbers = [*(f"{value:.0%}" for value in coverage), *(f"{value:.3g}" for value in crps)]
        lines.add_row(row.places, readable(row.quantity), f"{row.lead_minutes:g} min", *numbers)
    return lines


def _forecasts(model: DeployedModel, split: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the members (m, lead, c, y, x) and the observed (lead, c, y, x) of some init times of a period."""
    config = model.config
    reader = FrameReader(OBSERVATIONS, model.names)
    check_signature(OBSERVATIONS, reader.observations, config.signature, config.model)
    init_times = thinned(read_init_times(PREPARED / "init_times.csv", split), INIT_TIMES)
    positions = reader.positions(init_times)
    for position, init_time in zip(
        positions, tqdm(init_times, f"forecast {split}", unit="init time", disable=not sys.stderr.isatty()), strict=True
    ):
        frames = reader.sample(position, config.history, config.horizon)
        yield model.forecast(frames[: config.history], init_time), frames[config.history :, : config.targets]


def _measured(
    places: Sequence[Place],
    cases: Cases,
    fitted: RangeCalibration,
    quantities: Sequence[Quantity],
    step_minutes: float,
) -> Iterator[Measured]:
    raw, observed = _pooled(cases)
    better = fitted(raw, quantities)
    names = ", ".join(place.name for place in places)
    cells = float((places[0].weights / places[0].weights.max()).sum())
    for k, quantity in enumerate(quantities):
        for lead in range(raw.shape[1]):
            valid = np.isfinite(observed[lead, k]) & np.isfinite(raw[0, lead, k])
            truth = observed[lead, k, valid].astype(np.float64)
            sides = [side[:, lead, k, valid].astype(np.float64) for side in (better, raw)]
            coverage, coverage_raw = (float(inside(side, truth).mean()) for side in sides)
            crps, crps_raw = (float(crps_of_sorted(side, truth).mean()) for side in sides)
            yield Measured(
                places=names,
                cells=cells,
                quantity=quantity.name,
                units=quantity.units,
                lead_minutes=(lead + 1) * step_minutes,
                cases=truth.size,
                coverage=coverage,
                coverage_raw=coverage_raw,
                crps=crps,
                crps_raw=crps_raw,
                mean_absolute_error=float(np.abs(sides[1][len(raw) // 2] - truth).mean()),
            )
