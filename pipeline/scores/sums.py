"""All sums of one model in one labelled dataset, and the scores of it by name.

Layout: for each field the variables `<field>.<sum>`, float64, `(init_time, lead_time[, <field>.threshold][, scale])`;
thresholds in the field's units, `scale` the neighbourhood in km. `<field>.valid_crc` is the CRC-32 of each frame's
packed mask of valid cells: two models with equal values were scored on the same cells.
Datasets of disjoint init times merge by concatenation; every score is a pure function of the merged sums.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from pipeline.schema import INIT_TIME, LEAD_TIME, TIME_UNITS, check_scores, lead_minutes, score_key
from pipeline.scores import categorical, continuous, spatial

THRESHOLD, SCALE, VALID_CRC, FIELD_UNITS = "threshold", "scale", "valid_crc", "field_units"
CELLS_AT_ONCE = 2**19  # of a chunk of frames: its float64 temporaries stay near the processor's cache
CONTINUOUS = {f.__name__: f for f in (continuous.rmse, continuous.mae, continuous.mean_error, continuous.mse_frame)}
CATEGORICAL = {f.__name__: f for f in (categorical.csi, categorical.pod, categorical.far, categorical.frequency_bias)}

Scores = dict[str, dict[int, float]]  # score name -> lead in minutes -> value


def frame_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    thresholds: Sequence[float],
    windows: Sequence[tuple[int, int]],
) -> dict[str, np.ndarray]:
    """Return every sum of every frame, and the CRC of its mask, from arrays `(init, lead, y, x)`.

    `windows` are neighbourhoods in cells `(y, x)`. Each result starts with `(init, lead)`; chunks of frames bound the
    memory whatever the number of frames.
    """
    lead_shape, frame_shape = valid.shape[:2], valid.shape[2:]
    forecasts, observations, masks = (array.reshape(-1, *frame_shape) for array in (forecast, observed, valid))
    chunk = max(1, CELLS_AT_ONCE // int(np.prod(frame_shape)))
    parts = [
        _chunk_sums(forecasts[cut], observations[cut], masks[cut], thresholds, windows)
        for cut in (slice(start, start + chunk) for start in range(0, len(masks), chunk))
    ]
    return {
        name: np.concatenate([part[name] for part in parts]).reshape(*lead_shape, *parts[0][name].shape[1:])
        for name in parts[0]
    }


def label_sums(
    sums: dict[str, np.ndarray],
    field: str,
    units: str,
    coords: dict[str, xr.DataArray],
    thresholds: Sequence[float],
    scales_km: Sequence[float],
) -> xr.Dataset:
    """Return `sums` of one field as a dataset in this module's layout; `coords` hold init and lead times.

    The field's `units` go to the attribute `field_units` of `<field>.n`.
    """
    threshold = f"{field}.{THRESHOLD}"
    tails = dict.fromkeys(categorical.SUMS, (threshold,)) | dict.fromkeys(spatial.SUMS, (threshold, SCALE))
    variables = {
        f"{field}.{name}": ((INIT_TIME, LEAD_TIME, *tails.get(name, ())), values) for name, values in sums.items()
    }
    labels: dict[str, object] = dict(coords)
    if thresholds:
        labels[threshold] = np.asarray(thresholds, np.float64)
        if scales_km:
            labels[SCALE] = (SCALE, np.asarray(scales_km, np.float64), {"units": "km"})
    dataset = xr.Dataset(variables, coords=labels)
    dataset[f"{field}.n"].attrs[FIELD_UNITS] = units
    return dataset


def fields_of(sums: xr.Dataset) -> list[str]:
    """Return the names of the fields whose sums the dataset holds, in stored order."""
    return [str(name).removesuffix(".n") for name in sums.data_vars if str(name).endswith(".n")]


def units_of(sums: xr.Dataset, field: str) -> str:
    """Return the units of a field, as the forecasts state them."""
    return str(sums[f"{field}.n"].attrs[FIELD_UNITS])


def field_sums(sums: xr.Dataset, field: str) -> xr.Dataset:
    """Return one field's sums under their plain names: `n`, `hits`, …, with dimensions `threshold` and `scale`."""
    prefix = f"{field}."
    own = sums[[name for name in sums.data_vars if str(name).startswith(prefix)]]
    return own.rename({name: str(name).removeprefix(prefix) for name in own.variables if str(name).startswith(prefix)})


def scores_of(sums: xr.Dataset) -> Scores:
    """Return every score of one model by `score_key` name and lead in minutes; NaN where a score is undefined.

    With more than one field the field's name leads: 'temperature/rmse'.
    """
    fields = fields_of(sums)
    scores: Scores = {}
    for field in fields:
        prefix = f"{field}/" if len(fields) > 1 else ""
        own = _field_scores(field_sums(sums, field), units_of(sums, field))
        scores |= {prefix + key: _by_lead(values) for key, values in own.items()}
    return scores


def write_sums(sums: xr.Dataset, path: Path) -> None:
    """Write `sums` as NetCDF-4, whole or not at all, with the same bytes for the same sums."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    encoding: dict[str, dict[str, object]] = {str(name): {"_FillValue": None} for name in sums.variables}
    encoding[INIT_TIME] |= {"units": TIME_UNITS, "dtype": "int64"}
    stored = sums.copy()
    for name in stored.variables:
        stored[name].encoding = {}
    seconds = (sums[LEAD_TIME] / np.timedelta64(1, "s")).astype(np.int64)
    stored[LEAD_TIME] = (LEAD_TIME, seconds.values, {"units": "seconds"})
    stored.to_netcdf(partial, engine="h5netcdf", encoding=encoding)
    partial.replace(path)


def read_sums(path: Path) -> xr.Dataset:
    """Return the sums that `write_sums` wrote to `path`, in memory."""
    with xr.open_dataset(path, engine="h5netcdf", decode_timedelta=True) as stored:
        return check_scores(stored.load())


def _chunk_sums(
    forecast: np.ndarray,
    observed: np.ndarray,
    valid: np.ndarray,
    thresholds: Sequence[float],
    windows: Sequence[tuple[int, int]],
) -> dict[str, np.ndarray]:
    sums = continuous.error_sums(forecast, observed, valid)
    if thresholds:
        sums |= categorical.contingency_sums(forecast, observed, valid, thresholds)
        if windows:
            sums |= spatial.fraction_sums(forecast, observed, valid, thresholds, windows)
    crc = [zlib.crc32(np.packbits(mask).tobytes()) for mask in valid]
    return sums | {VALID_CRC: np.asarray(crc, np.int64)}


def _field_scores(sums: xr.Dataset, units: str) -> dict[str, xr.DataArray]:
    scores = {name: function(sums) for name, function in CONTINUOUS.items()}
    for threshold in sums[THRESHOLD].values if THRESHOLD in sums else ():
        at = sums.sel({THRESHOLD: threshold})
        scores |= {score_key(name, threshold, units): function(at) for name, function in CATEGORICAL.items()}
        for scale in at[SCALE].values if SCALE in at else ():
            scores[score_key("fss", threshold, units, scale)] = spatial.fss(at.sel({SCALE: scale}))
    return scores


def _by_lead(values: xr.DataArray) -> dict[int, float]:
    minutes = lead_minutes(values.to_dataset(name="score"))
    return dict(zip(minutes, values.values.astype(float).tolist(), strict=True))
