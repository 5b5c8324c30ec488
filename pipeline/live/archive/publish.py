"""Published forecasts: one checksummed Zarr store a cycle, complete or absent, and the catalogue that readers trust.

A forecast is written beside its place, read back, listed with the SHA-256 of every file in `manifest.json`, synced and
renamed, all but the rename outside the ledger's transaction. Nothing in it depends on attempt, host or clock: the same
cycle gives the same bytes.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask.array
import numpy as np
import xarray as xr
from dask.delayed import delayed

from fieldcast.pipeline.config import Products
from fieldcast.pipeline.datasets import manifest, store
from fieldcast.pipeline.datasets.atomic import (
    free_bytes,
    fsync_tree,
    make_folder,
    needing,
    partial_of,
    rename,
    replace_durable,
    write_durable,
)
from fieldcast.pipeline.datasets.manifest import MANIFEST
from fieldcast.pipeline.datasets.schema import INIT_TIME, LEAD_TIME, VALID_TIME, field_names, lead_times
from fieldcast.pipeline.datasets.signature import compare_signatures, signature_of
from fieldcast.pipeline.datasets.times import from_minutes, from_numpy, to_numpy
from fieldcast.pipeline.errors import CannotWriteError, DamagedError, InputError
from fieldcast.pipeline.forecasting.forecaster import mean_of_members
from fieldcast.pipeline.live.archive.durable import failpoint
from fieldcast.pipeline.live.archive.ledger import LEDGER, VISIBLE, Cycle, Ledger
from fieldcast.pipeline.live.archive.products import PRODUCTS, has_products, products_of
from fieldcast.pipeline.live.archive.records import cycle_record
from fieldcast.pipeline.live.clock import iso, parse, stamp
from fieldcast.pipeline.live.places.issue import PLACES, write_checked

FORMAT = 1
FORECASTS, COPIES, CATALOGUE = "forecasts", "copies", "latest.json"
CATALOGUE_CYCLES = 288  # a day at five minutes; older ones are in the ledger
PER_CYCLE = ("model", "model_version", "quality_flag", "n_input_missing")  # coordinates along init_time
METADATA_BYTES = 2**20  # of a store beside its fields, generously
REMEDY = "or lower live.retention.days"  # beside freeing space


@dataclass(frozen=True)
class Issue:
    """Metadata of a forecast; goes into its attributes and its manifest."""

    init_time: datetime
    revision: int
    model: str
    model_version: str
    quality_flag: str
    n_input_missing: int
    run_key: str
    contract_sha256: str
    step_minutes: int | float

    def facts(self) -> dict[str, Any]:
        """Return the entries of the manifest and of the store's attributes."""
        return asdict(self) | {"init_time": iso(self.init_time)}


def path_of(folder: Path, init_time: datetime, revision: int = 0) -> Path:
    """Return the path of the forecast of a cycle in the live folder."""
    suffix = f".r{revision}" if revision else ""
    return folder / FORECASTS / f"{stamp(init_time)}{suffix}.zarr"


def staging_of(target: Path, token: int) -> Path:
    """Return the path at which the holder of `token` writes a forecast."""
    return partial_of(target, token)


def require_space(folder: Path, forecast_bytes: int, reserve_bytes: float) -> None:
    """Raise `CannotWriteError` unless the disk holds twice the forecast and the reserve."""
    needed = int(2 * (forecast_bytes + METADATA_BYTES) + reserve_bytes)
    if (free := free_bytes(folder)) < needed:
        short = -(-(needed - free) // 10**6)
        raise CannotWriteError(
            f"{folder}: {free} bytes free, expected {needed} for a forecast and live.reserve_megabytes: free {short} MB"
            f" there {REMEDY}"
        )


def stage(
    target: Path,
    issue: Issue,
    grid: xr.Dataset,
    members: np.ndarray,
    token: int,
    products: Products | None = None,
    places: bytes | None = None,
) -> tuple[Path, str]:
    """Write a forecast beside `target`, checked and synced; return its folder and the SHA-256 of its manifest.

    `members` (m, lead, c, y, x) float32, in the order of the variables of `grid` (0, y, x): their mean is the forecast,
    and `products` are what is published of them beside it; `places` is the file of forecasts for places.
    """
    forecast = _labelled(issue, grid, mean_of_members(members[None]))
    further = products_of(forecast, members, products or Products())
    staging = staging_of(target, token)
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with needing(forecast.nbytes + (further.nbytes if further else 0) + METADATA_BYTES, staging, REMEDY):
            make_folder(staging.parent)
            store.write_whole(staging, forecast)
            failpoint("store_created")
            if further is not None:
                store.write_whole(staging / PRODUCTS, further)
            failpoint("store_written")
            _read_back(staging, forecast)
            if further is not None:
                _read_back(staging / PRODUCTS, further)
            if places is not None:
                write_checked(staging / PLACES, places)
            content = manifest.sealed({"format": FORMAT, **issue.facts(), "files": manifest.facts_of_files(staging)})
            write_durable(staging / MANIFEST, content)
            failpoint("manifest_written")
            fsync_tree(staging)
            failpoint("synced")
    except Exception:
        shutil.rmtree(staging, ignore_errors=True)  # at once: the ledger needs room too
        raise
    return staging, hashlib.sha256(content).hexdigest()


def commit(folder: Path, ledger: Ledger, cycle: Cycle, staging: Path, at: datetime) -> None:
    """Make a staged forecast the one that readers see: rename, ledger row and catalogue in one transaction.

    `cycle` is the row as it shall be. Raise `BusyError`, with nothing changed, if another process has taken over.
    """
    target = path_of(folder, cycle.init_time, cycle.revision)
    with needing(METADATA_BYTES, target, REMEDY), ledger.writing(fenced=True):
        failpoint("before_rename")
        rename(staging, target)
        failpoint("renamed")
        enter(folder, ledger, [cycle], at)
        failpoint("before_commit")
    failpoint("committed")


def enter(folder: Path, ledger: Ledger, cycles: Sequence[Cycle], at: datetime) -> None:
    """Write the rows of forecasts in their final places, and the catalogue; inside the ledger's transaction."""
    for cycle in cycles:
        ledger.put(cycle, str(cycle.state), at)
        ledger.enqueue(f"cycle {iso(cycle.init_time)} {cycle.revision}", cycle_record(cycle))
        if cycle.revision:
            ledger.supersede(cycle, at)
    failpoint("before_catalogue")
    write_catalogue(folder, ledger)


def write_catalogue(folder: Path, ledger: Ledger) -> None:
    """Write `latest.json`: the newest cycles that readers see, oldest first."""
    entries = [_entry(row) for row in ledger.cycles(states=VISIBLE, newest=CATALOGUE_CYCLES)]
    replace_durable(
        folder / CATALOGUE, manifest.sealed({"format": FORMAT, "token": ledger.token, "forecasts": entries})
    )


def read_catalogue(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of `latest.json`; raise `DamagedError` if it is not what was written."""
    path = folder / CATALOGUE
    if not path.exists():
        raise InputError(f"{path}: no such file: no forecast has been published there (fieldcast cycle)")
    entries: list[dict[str, Any]] = _unsealed(path, manifest.read_bytes(path, _REBUILT), _REBUILT)["forecasts"]
    return entries


def open_forecasts(
    folder: Path | str = Path("data/live"), start: datetime | str | None = None, end: datetime | str | None = None
) -> xr.Dataset:
    """Return all published forecasts with init times from `start` to `end`, both included, lazily, as one dataset.

    `(init_time, lead_time, y, x)` in physical units, NaN where a cell was never observed or a model has no such lead;
    `model`, `model_version`, `quality_flag`, `n_input_missing` are coordinates along `init_time`. Times without a zone
    are UTC. Every byte is checked when a cycle is opened first: raise `DamagedError`, naming the file, where one has
    changed; `InputError` where nothing is published in the span, or on different grids.
    """
    folder = Path(folder)
    entries = _span(folder, _moment("start", start), _moment("end", end))
    if not entries:
        raise InputError(
            f"{folder}: no forecast is published from {start} to {end}: fieldcast status lists what is there"
        )
    opened = _open_all(folder, entries)
    leads = np.unique(np.concatenate([forecast[LEAD_TIME].values for forecast in opened]))
    _require_alike(folder, opened)
    merged = xr.concat(
        [one if one.sizes[LEAD_TIME] == leads.size else one.reindex({LEAD_TIME: leads}) for one in opened],
        INIT_TIME,
        data_vars="all",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="drop_conflicts",
    )
    valid_time = (merged[INIT_TIME] + merged[LEAD_TIME]).assign_attrs(store.TIME_ATTRS[VALID_TIME])
    return merged.assign_coords({VALID_TIME: valid_time})


def open_products(
    folder: Path | str = Path("data/live"), start: datetime | str | None = None, end: datetime | str | None = None
) -> xr.Dataset:
    """Return the products of published forecasts, as `open_forecasts` returns their means, and `live.products` asks.

    Forecasts without products, such as fallbacks, are left out. Raise `InputError` where none in the span has any.
    """
    folder = Path(folder)
    entries = _span(folder, _moment("start", start), _moment("end", end))
    found = [entry for entry in entries if has_products(folder / entry["path"])]
    if not found:
        raise InputError(f"{folder}: no forecast from {start} to {end} has products: set live.products")
    for entry in found:
        check(folder / entry["path"], entry["manifest_sha256"])
    opened = [store.open_whole(folder / entry["path"] / PRODUCTS) for entry in found]
    return xr.concat(
        opened, INIT_TIME, coords="minimal", compat="override", join="outer", combine_attrs="drop_conflicts"
    )


def check(path: Path, manifest_sha256: str | None = None) -> dict[str, Any]:
    """Return the manifest of a published forecast; raise `DamagedError`, naming the file, if any byte has changed."""
    fix = f"fieldcast cycle --at {path.name.split('.')[0]} --supersede"
    manifest_path = path / MANIFEST
    content = manifest.read_bytes(manifest_path, fix)
    sha256 = hashlib.sha256(content).hexdigest()
    if manifest_sha256 is not None and sha256 != manifest_sha256:
        raise DamagedError(f"{manifest_path}: sha256 is {sha256}, expected {manifest_sha256}: {fix}")
    written = _unsealed(manifest_path, content, fix)
    manifest.check(path, written["files"], fix)
    return written


def manifest_digest(path: Path) -> str:
    """Return the SHA-256 of the manifest of a published forecast."""
    return hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()


def catalogue_is_current(folder: Path, ledger: Ledger) -> bool:
    """Return whether `latest.json` agrees with the ledger."""
    rows = ledger.cycles(states=VISIBLE, newest=CATALOGUE_CYCLES)
    try:
        return read_catalogue(folder) == [_entry(row) for row in rows]
    except (DamagedError, InputError):
        return not rows and not (folder / CATALOGUE).exists()


def audit(folder: Path, ledger: Ledger) -> list[str]:
    """Return a line for each artefact under `folder` that is not as it was written: ledger, catalogue, forecasts."""
    faults = []
    try:
        ledger.check()
    except DamagedError as error:
        return [str(error)]
    for row in ledger.cycles(states=VISIBLE):
        try:
            check(path_of(folder, row.init_time, row.revision), row.manifest_sha256)
        except DamagedError as error:
            faults.append(str(error))
    if not catalogue_is_current(folder, ledger):
        faults.append(f"{folder / CATALOGUE}: differs from the ledger: {_REBUILT}")
    return faults


def _labelled(issue: Issue, grid: xr.Dataset, fields: np.ndarray) -> xr.Dataset:
    """Return the forecast (1, lead, c, y, x) of a cycle with its coordinates and facts."""
    leads = lead_times(fields.shape[1], from_minutes(issue.step_minutes))
    values = {name: fields[:, :, i] for i, name in enumerate(field_names(grid))}
    return store.labelled_forecasts(grid, np.array([to_numpy(issue.init_time)]), leads, issue.facts(), values, None)


def _read_back(path: Path, dataset: xr.Dataset) -> None:
    """Raise `DamagedError` unless the disk gives back what memory holds."""
    names = field_names(dataset)
    try:
        with store.open_whole(path) as written:
            same = [np.array_equal(written[name].values, dataset[name].values, equal_nan=True) for name in names]
    except (ValueError, RuntimeError, KeyError):  # of schema and codecs
        same = [False]
    if not all(same):
        name = names[same.index(False)]
        raise DamagedError(f"{path / name}: the disk does not give back what was written: check the disk")


def _unsealed(path: Path, text: bytes, fix: str) -> dict[str, Any]:
    """Return the content of a sealed file of this format."""
    content = manifest.unsealed(path, text, fix)
    if content.get("format") != FORMAT:
        raise InputError(
            f"{path}: format is {content.get('format')}, expected {FORMAT}: use the fieldcast that wrote it"
        )
    return content


def _entry(row: Cycle) -> dict[str, Any]:
    return {
        "init_time": iso(row.init_time),
        "path": f"{FORECASTS}/{path_of(Path(), row.init_time, row.revision).name}",
        "model": row.model,
        "model_version": row.model_version,
        "quality_flag": row.quality,
        "n_input_missing": row.n_input_missing,
        "manifest_sha256": row.manifest_sha256,
    }


def _span(folder: Path, first: datetime | None, last: datetime | None) -> list[dict[str, Any]]:
    """Return the entries of a span, from the catalogue if it reaches back so far, else from the ledger."""
    entries = read_catalogue(folder)
    whole = len(entries) < CATALOGUE_CYCLES or (first is not None and iso(first) >= entries[0]["init_time"])
    if not whole:
        with Ledger(folder / LEDGER, read_only=True) as ledger:
            entries = [_entry(row) for row in ledger.cycles(first, last, VISIBLE)]
    low, high = iso(first) if first else "", iso(last) if last else "9999"
    return [entry for entry in entries if low <= entry["init_time"] <= high]


def _moment(name: str, value: datetime | str | None) -> datetime | None:
    try:
        moment = parse(value) if isinstance(value, str) else value
    except ValueError:
        raise InputError(f"{name} is '{value}', expected a time such as 2020-10-31T06:00") from None
    return moment.replace(tzinfo=UTC) if moment is not None and moment.tzinfo is None else moment


def _require_alike(folder: Path, opened: Sequence[xr.Dataset]) -> None:
    """Raise `InputError` unless forecasts have one grid, and the same units where they have the same fields."""
    first, names = opened[0], field_names(opened[0])
    for other in opened[1:]:
        shared = [name for name in names if name in other]
        ours, theirs = (
            signature_of(one, shared, np.timedelta64(1, "m"), one[INIT_TIME].values[0]) for one in (first, other)
        )
        if difference := compare_signatures(ours, theirs):
            early, late = (iso(from_numpy(one[INIT_TIME].values[0])) for one in (first, other))
            raise InputError(
                f"{folder}: the forecasts of {early} and {late} do not fit into one dataset, of the later one "
                f"{difference}: choose a span without one of them"
            )


def _open_all(folder: Path, entries: Sequence[dict[str, Any]]) -> list[xr.Dataset]:
    """Return the forecasts, lazily; of those with equal grid, leads and metadata only the first is opened."""
    first: dict[str, xr.Dataset] = {}
    opened = []
    for entry in entries:
        path = folder / entry["path"]
        written = _checked(path, entry["manifest_sha256"])
        kind = manifest.digest({name: facts for name, facts in written["files"].items() if _is_shared(name)})
        if kind not in first:
            with store.open_forecasts(path) as stored:
                first[kind] = stored.drop_vars([INIT_TIME, VALID_TIME])
                first[kind].attrs = {name: value for name, value in stored.attrs.items() if name not in written}
        opened.append(_like(first[kind], path, written))
    return opened


def _is_shared(name: str) -> bool:
    """Return whether a file of a store is the same for every init time: neither times, fields nor attributes."""
    of_one = name in ("zarr.json", PLACES) or name.startswith((f"{INIT_TIME}/c/", f"{VALID_TIME}/c/"))
    return not of_one and name.rpartition("/c/")[2].count("/") < 3  # a field's chunks have four indices


def _like(other: xr.Dataset, path: Path, written: dict[str, Any]) -> xr.Dataset:
    """Return the forecast at `path`, whose fields are read when they are wanted, with grid and leads of another."""
    fields = {}
    for name in field_names(other):
        array = dask.array.from_delayed(delayed(_field)(path, name), other[name].shape, other[name].dtype)  # type: ignore[no-untyped-call]
        fields[name] = (other[name].dims, array, other[name].attrs)
    along = {name: (INIT_TIME, [written[name]]) for name in PER_CYCLE}
    moment = xr.Variable(INIT_TIME, [to_numpy(parse(written["init_time"]))], store.TIME_ATTRS[INIT_TIME])
    return xr.Dataset(fields, {**other.coords, INIT_TIME: moment, **along}, other.attrs)


def _field(path: Path, name: str) -> np.ndarray:
    with store.open_forecasts(path) as stored:
        values: np.ndarray = stored[name].values
    return values


@lru_cache(maxsize=100_000)
def _checked(path: Path, manifest_sha256: str) -> dict[str, Any]:  # published forecasts never change: once a process
    return check(path, manifest_sha256)


_REBUILT = "the next cycle writes it anew from the ledger"
