"""All sums of one model in one labelled dataset, and the scores of it by name.

Layout: for each field the variables `<field>.<sum>`, float64, `(init_time, lead_time, …)`, with the further dimensions
that `DIMENSIONS` names. Of these `threshold`, `class` and `wavelength` are a field's own, `<field>.threshold` and so
on: thresholds in the field's units, classes by their lower bound, wavelengths in km. `scale` is the neighbourhood in
km, `region` a name of params.yaml, `rank` 0 to M, `probability_bin` the middle of a bin. `<field>.valid_crc` is the
CRC-32 of each frame's packed mask of valid cells: two models with equal values were scored on the same cells.
Fields are in the order of the forecasts, which the attribute `field_order` of a file keeps.
Sums count cells by area but `n`, which is the plain number of valid cells; `weight` adds up the weights of those.
Datasets of disjoint init times merge by concatenation; every score is a pure function of the merged sums.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import xarray as xr

from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, MIRRORED, lead_minutes
from fieldcast.pipeline.verification import (
    categorical,
    continuous,
    probabilistic,
    spatial,
    spectral,
    storm_cells,
    strata,
    structural,
)
from fieldcast.pipeline.verification.scores import (
    OF_EVENTS,
    OF_NEIGHBOURHOODS,
    OF_STORM_CELLS,
    TABLE,
    Score,
    Scores,
    of_values,
)

THRESHOLD, SCALE, VALID_CRC, FIELD_UNITS = "threshold", "scale", "valid_crc", "field_units"
RANK, BIN, STORM = "rank", "probability_bin", "storm_threshold"
ERRORS = ("weight", "squared_error")  # sums that are kept of forecasts of flipped fields; 0 where there are none
OWN_DIMENSIONS = (THRESHOLD, STORM, strata.CLASS, spectral.WAVELENGTH)  # their coordinates bear the field's name
CELLS_AT_ONCE = 2**18  # of a chunk of frames: its float64 temporaries stay near the processor's cache
DIMENSIONS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*categorical.SUMS, "brier"), (THRESHOLD,)),
    **dict.fromkeys(spatial.SUMS, (THRESHOLD, SCALE)),
    **dict.fromkeys(storm_cells.SUMS, (STORM,)),
    **dict.fromkeys(probabilistic.RELIABILITY, (THRESHOLD, BIN)),
    **dict.fromkeys(spectral.SUMS, (spectral.WAVELENGTH,)),
    **dict.fromkeys(probabilistic.CLASS_SUMS, (strata.CLASS,)),
    **dict.fromkeys((f"{strata.CLASS}_{name}" for name in (*strata.CLASS_SUMS, "crps")), (strata.CLASS,)),
    "rank_histogram": (RANK,),
}
DIMENSIONS |= {f"{strata.REGION}_{name}": (strata.REGION, *DIMENSIONS.get(name, ())) for name in strata.REGION_SUMS}


@dataclass(frozen=True)
class Extras:
    """Further sums of a field beyond errors and events; what is None has no sums."""

    rows: np.ndarray | None = None  # area weight of each row (y,), mean 1; without it every cell weighs 1
    climatology: np.ndarray | None = None  # (hour, y, x), 24 UTC hours or one mean: anomalies
    data_range: float | None = None  # of the training period, in the field's units: PSNR and SSIM
    spacing: tuple[float, float] | None = None  # along y and x in km: spectra
    regions: Sequence[tuple[slice, slice]] = ()  # rows and columns of boxes
    quantiles: bool = False  # members are quantiles: each of them is too smooth to have a spectrum
    votes: np.ndarray | None = None  # (lead, threshold): so many members make an event; None: their mean decides
    storms: storm_cells.StormCellOptions | None = None

    def of_leads(self, first: int, last: int) -> Extras:
        """Return those of the leads from `first` to before `last`."""
        return self if self.votes is None else replace(self, votes=self.votes[first:last])


def frame_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    thresholds: Sequence[float],
    windows: Sequence[tuple[int, int]],
    extras: Extras | None = None,
    hours: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Return every sum of every frame, and the CRC of its mask, from arrays `(init, lead, y, x)`.

    `forecast` may have members, `(init, lead, member, y, x)`. `windows` are neighbourhoods in cells `(y, x)`. Without
    `extras` errors, events and neighbourhoods alone are counted. `hours` `(init, lead)` are the valid times' UTC hours,
    which a climatology needs. Each result starts with `(init, lead)`; chunks of frames bound the memory whatever the
    number of frames.
    """
    lead_shape = valid.shape[:2]
    forecasts, observations, masks = (array.reshape(-1, *array.shape[2:]) for array in (forecast, observed, valid))
    hour = np.zeros(len(masks), int) if hours is None else hours.ravel()
    votes = None if extras is None or extras.votes is None else np.tile(extras.votes, (lead_shape[0], 1))
    chunk = max(1, CELLS_AT_ONCE // forecasts[0].size)
    parts = [
        _chunk_sums(
            forecasts[cut],
            observations[cut],
            masks[cut],
            thresholds,
            windows,
            extras if extras is None or votes is None else replace(extras, votes=votes[cut]),
            hour[cut],
        )
        for cut in (slice(start, start + chunk) for start in range(0, len(masks), chunk))
    ]
    return {
        name: np.concatenate([part[name] for part in parts]).reshape(*lead_shape, *parts[0][name].shape[1:])
        for name in parts[0]
    }


def label_sums(
    sums: Mapping[str, np.ndarray],
    field: str,
    units: str,
    coords: Mapping[str, xr.DataArray],
    thresholds: Sequence[float],
    scales_km: Sequence[float],
    labels: Mapping[str, np.ndarray] | None = None,
) -> xr.Dataset:
    """Return `sums` of one field as a dataset in this module's layout; `coords` hold init and lead times.

    The field's `units` go to the attribute `field_units` of `<field>.n`. `labels` are the coordinates that the sums
    alone do not tell: the wavelengths and the names of regions.
    """
    coordinates: dict[str, np.ndarray] = {**(labels or {}), SCALE: np.asarray(scales_km, np.float64)}
    coordinates[THRESHOLD] = np.asarray(thresholds, np.float64)
    coordinates[strata.CLASS] = np.asarray([-np.inf, *thresholds], np.float64)
    coordinates[BIN] = (np.arange(probabilistic.BINS) + 0.5) / probabilistic.BINS
    if "rank_histogram" in sums:
        coordinates[RANK] = np.arange(sums["rank_histogram"].shape[-1])
    dim_names = {dim: f"{field}.{dim}" if dim in OWN_DIMENSIONS else dim for dim in coordinates}
    variables, used_coords = {}, dict(coords)
    for name, values in sums.items():
        dims = DIMENSIONS.get(name, ())
        variables[f"{field}.{name}"] = ((INIT_TIME, LEAD_TIME, *(dim_names[dim] for dim in dims)), values)
        for dim in dims:
            attrs = {"units": "km"} if dim in (SCALE, spectral.WAVELENGTH) else {}
            used_coords[dim_names[dim]] = xr.DataArray(coordinates[dim], dims=dim_names[dim], attrs=attrs)
    dataset = xr.Dataset(variables, coords=used_coords)
    dataset[f"{field}.n"].attrs[FIELD_UNITS] = units
    return dataset


def fields_of(sums: xr.Dataset) -> list[str]:
    """Return the names of the fields whose sums the dataset holds, in stored order."""
    return [str(name).removesuffix(".n") for name in sums.data_vars if str(name).endswith(".n")]


def with_mirrored(sums: xr.Dataset, mirrored: xr.Dataset) -> xr.Dataset:
    """Return the sums of a model with the errors among those of its forecasts of flipped fields, of some init times."""
    errors = {
        f"{field}.{MIRRORED}_{part}": mirrored[f"{field}.{part}"].reindex_like(sums[f"{field}.n"], fill_value=0.0)
        for field in fields_of(sums)
        for part in ERRORS
    }
    return sums.assign(errors)


def units_of(sums: xr.Dataset, field: str) -> str:
    """Return the units of a field, as the forecasts state them."""
    return str(sums[f"{field}.n"].attrs[FIELD_UNITS])


def of_field(sums: xr.Dataset, field: str) -> xr.Dataset:
    """Return the sums of one field alone, in the layout of all."""
    return sums[[name for name in sums.data_vars if str(name).startswith(f"{field}.")]]


def field_sums(sums: xr.Dataset, field: str) -> xr.Dataset:
    """Return one field's sums under their plain names: `n`, `hits`, …, with dimensions `threshold` and `scale`."""
    prefix, own = f"{field}.", of_field(sums, field)
    return own.rename({name: str(name).removeprefix(prefix) for name in own.variables if str(name).startswith(prefix)})


def scores_of(sums: xr.Dataset) -> Scores:
    """Return every score of one model by lead in minutes; NaN where a score is undefined.

    With more than one field each score names its own.
    """
    fields, minutes = fields_of(sums), lead_minutes(sums)
    scores: Scores = {}
    for field in fields:
        arrays = score_arrays(field_sums(sums, field), units_of(sums, field), field if len(fields) > 1 else "")
        for score, values in arrays.items():
            scores[score] = dict(zip(minutes, values.values.astype(float).tolist(), strict=True))
    return scores


def score_arrays(sums: xr.Dataset, units: str, field: str = "") -> dict[Score, xr.DataArray]:
    """Return every score of one field, `(…, lead_time)`, from its sums under their plain names.

    Dimensions other than the init time stay, for instance one of resampled sums. A score is NaN where its sums are not
    there, such as those of members of a model that has none.
    """
    undefined = xr.full_like(sums["n"].sum(INIT_TIME), np.nan, np.float64)
    arrays = {
        definition.name: definition.function(sums[list(definition.sums)])  # all thresholds and scales at once
        for definition in TABLE.values()
        if set(definition.sums) <= set(sums.data_vars)
    }
    return {
        score: _select(arrays[score.name], score) if score.name in arrays else undefined
        for score in field_scores(sums, units, field)
    }


def field_scores(sums: xr.Dataset, units: str, field: str = "") -> list[Score]:
    """Return all scores of one field's sums (plain names), in the order of the table; the same for all models."""
    scores = [Score(definition.name, field=field) for definition in of_values(sums.data_vars)]
    for threshold in sums[THRESHOLD].values.tolist() if THRESHOLD in sums.coords else ():
        scores += [Score(definition.name, threshold, None, units, field) for definition in OF_EVENTS]
        scales = sums[SCALE].values.tolist() if SCALE in sums.coords else ()
        scores += [
            Score(definition.name, threshold, scale, units, field)
            for scale in scales
            for definition in OF_NEIGHBOURHOODS
        ]
    for at_least in sums[STORM].values.tolist() if STORM in sums.coords else ():
        scores += [Score(definition.name, at_least, None, units, field) for definition in OF_STORM_CELLS]
    return scores


def needed_sums(sums: xr.Dataset, score: Score) -> xr.Dataset | None:
    """Return what `score` is a function of: its sums at its threshold and scale; None where one is not there."""
    names = list(TABLE[score.name].sums)
    if not set(names) <= set(sums.data_vars):
        return None
    return _select(sums[names], score)


Labelled = TypeVar("Labelled", xr.Dataset, xr.DataArray)


def _select(values: Labelled, score: Score) -> Labelled:
    at = {THRESHOLD: score.threshold, STORM: score.threshold, SCALE: score.scale_km}
    return values.sel({dim: value for dim, value in at.items() if value is not None and dim in values.dims})


def _chunk_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    thresholds: Sequence[float],
    windows: Sequence[tuple[int, int]],
    extras: Extras | None,
    hours: np.ndarray,
) -> dict[str, np.ndarray]:
    rows = extras.rows if extras else None
    value, members = _split(forecast)
    decisive = _decisive(value, members, thresholds, extras)
    sums = _value_sums(forecast, observed, valid, thresholds, rows, decisive)
    if thresholds and windows:
        sums |= _by_threshold(
            lambda field, threshold: spatial.fraction_sums(field, observed, valid, threshold, windows, rows=rows),
            decisive,
            thresholds,
        )
    if extras:
        sums |= continuous.moment_sums(value, observed, valid, rows)
        sums |= _field_sums(value, observed, valid, extras, hours, None if extras.quantiles else members)
        if thresholds:
            by_class = strata.class_sums(value, observed, valid, thresholds, rows)
            sums = {"class_crps": by_class["class_absolute_error"]} | sums | by_class
        sums |= _region_sums(forecast, observed, valid, thresholds, extras)
        if extras.storms:
            decided = members is not None and extras.votes is not None and extras.storms.at_least in thresholds
            field = decisive[list(thresholds).index(extras.storms.at_least)] if decided else value
            sums |= storm_cells.storm_sums(field, observed, valid, extras.storms)
        if extras.data_range:
            sums["peak_squared"] = sums["weight"] * extras.data_range**2
    crc = [zlib.crc32(np.packbits(mask).tobytes()) for mask in valid]
    return sums | {VALID_CRC: np.asarray(crc, np.int64)}


def _value_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    thresholds: Sequence[float],
    rows: np.ndarray | None,
    decisive: np.ndarray,
) -> dict[str, np.ndarray]:
    """Return the sums that take each cell by itself: of errors, events and members; `decisive` fields make events."""
    value, members = _split(forecast)
    sums = continuous.error_sums(value, observed, valid, rows) | continuous.weight_sums(valid, rows)
    if thresholds:
        sums |= _by_threshold(
            lambda field, threshold: categorical.contingency_sums(field, observed, valid, threshold, rows),
            decisive,
            thresholds,
        )
    if members is not None:
        return sums | probabilistic.member_sums(members, observed, valid, thresholds, rows)
    if thresholds:  # of one forecast, which is an event or none
        sums["brier"] = sums["misses"] + sums["false_alarms"]
    return sums | {"crps": sums["absolute_error"]}


def _decisive(
    value: np.ndarray, members: np.ndarray | None, thresholds: Sequence[float], extras: Extras | None
) -> np.ndarray:
    """Return fields (1 or threshold, frame, y, x) that are at a threshold where enough members are.

    With v votes that is the v-th largest member; without votes the forecast of one value.
    """
    if members is None or extras is None or extras.votes is None:
        return value[None]
    ranked = np.sort(members, axis=1)  # (frame, member, y, x), ascending; NaN last, in cells that are not valid
    return np.stack([probabilistic.voted(ranked, extras.votes[:, k]) for k in range(len(thresholds))])


def _by_threshold(
    count: Callable[[np.ndarray, Sequence[float]], dict[str, np.ndarray]],
    decisive: np.ndarray,
    thresholds: Sequence[float],
) -> dict[str, np.ndarray]:
    """Return the sums that `count` gives for all thresholds, each from its own decisive field where there are several.

    Their second dimension is the threshold's.
    """
    if len(decisive) == 1:
        return count(decisive[0], thresholds)
    parts = [count(field, [threshold]) for field, threshold in zip(decisive, thresholds, strict=True)]
    return {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}


def _field_sums(
    value: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    extras: Extras,
    hours: np.ndarray,
    members: np.ndarray | None,
) -> dict[str, np.ndarray]:
    """Return the sums that need whole fields or what is coordinates of the field: anomalies, similarity and spectra."""
    sums: dict[str, np.ndarray] = {}
    if extras.climatology is not None:
        normal = extras.climatology[hours % len(extras.climatology)]
        sums |= continuous.anomaly_sums(value, observed, valid, normal, extras.rows)
    if extras.data_range:
        sums |= structural.similarity_sums(value, observed, valid, extras.data_range)
    if extras.spacing:
        sums |= spectral.power_sums(value, observed, valid, members)
    return sums


def _region_sums(
    forecast: np.ndarray, observed: np.ndarray, valid: np.ndarray, thresholds: Sequence[float], extras: Extras
) -> dict[str, np.ndarray]:
    """Return the sums of each region, `(frame, region, …)`; a region is a box, so its cells are cut out and counted."""
    parts = []
    for y, x in extras.regions:
        rows = None if extras.rows is None else extras.rows[y]
        f, o, v = (array[..., y, x] for array in (forecast, observed, valid))
        decisive = _decisive(*_split(f), thresholds, extras)
        sums = _value_sums(f, o, v, thresholds, rows, decisive) | continuous.moment_sums(_split(f)[0], o, v, rows)
        parts.append({name: sums[name] for name in strata.REGION_SUMS if name in sums})
    return {
        f"{strata.REGION}_{name}": np.stack([part[name] for part in parts], axis=1)
        for name in (parts[0] if parts else ())
    }


def _split(forecast: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the forecast value `(frame, y, x)`, the mean over members where there are any, and the members or None."""
    if forecast.ndim == 3:
        return forecast, None
    return forecast.mean(axis=1, dtype=np.float64).astype(forecast.dtype), forecast
