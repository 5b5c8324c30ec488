"""Files of an archive: found, fetched, opened header by header, and checked to be alike."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]
import numpy as np
import xarray as xr
from dask.base import compute
from dask.delayed import delayed
from tqdm import tqdm

from fieldcast.pipeline.config.sources import Decoding
from fieldcast.pipeline.datasets.atomic import replacing
from fieldcast.pipeline.datasets.grid import crs_wkt, spacing
from fieldcast.pipeline.datasets.schema import GRID_MAPPING, LATITUDE, LONGITUDE, X, Y, field_names
from fieldcast.pipeline.errors import InputError, is_full, redacted
from fieldcast.pipeline.sources.decoder import decode
from fieldcast.pipeline.sources.units import Conversion

HEADERS_AT_ONCE = 256
TIMEOUT_SECONDS = 60


@dataclass(frozen=True)
class Header:
    """Header of a file: its times (datetime64[ns], in file order) and its grid, without its fields.

    `conversions` are from the file's units to those of the template, for variables that may have others.
    """

    path: str
    times: np.ndarray
    template: xr.Dataset
    conversions: Mapping[str, Conversion] = field(default_factory=dict)


def find(path: str, patterns: Sequence[str]) -> list[str]:
    """Return the files at `path` (a file, a folder searched for `patterns`, or a glob), sorted by name.

    Raise `InputError` when there is none.
    """
    files = [name for name in listed(path, patterns) if Path(name).is_file()]
    if not files:
        folder = Path(path).expanduser().is_dir()
        sought = f"files named {' or '.join(patterns)}" if folder else "a file, folder or glob"
        raise InputError(f"source.path is '{path}': nothing found, expected {sought}; correct the path")
    return files


def listed(path: str, patterns: Sequence[str]) -> list[str]:
    """Return the names at `path` (a file, a folder searched for `patterns`, or a glob), sorted.

    Nothing is opened: links that lead nowhere are among them, and for a glob folders too.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        below = ((folder, name) for folder, _, names in os.walk(place) for name in names)
        return sorted(str(Path(folder, name)) for folder, name in below if any(fnmatchcase(name, p) for p in patterns))
    if place.is_file() or place.is_symlink():
        return [str(place)]
    anchor = Path(place.anchor) if place.is_absolute() else Path()
    pattern = str(place.relative_to(place.anchor)) if place.is_absolute() else str(place)
    return sorted(str(name) for name in anchor.glob(pattern))


def read_headers(read: Callable[[str], Header], paths: Sequence[str], bounds: Decoding) -> list[Header]:
    """Return the header of every file, each decoded in a child; raise `InputError` where grids or units are mixed."""
    if len(paths) == 1:
        return [decode(paths[0], bounds, read, paths[0])]
    headers: list[Header] = []
    progress = tqdm(total=len(paths), desc="headers", unit="file", disable=not sys.stderr.isatty())
    with progress:
        for start in range(0, len(paths), HEADERS_AT_ONCE):
            batch = [
                delayed(decode, pure=False)(path, bounds, read, path) for path in paths[start : start + HEADERS_AT_ONCE]
            ]
            headers += compute(*batch, scheduler="threads")  # type: ignore[no-untyped-call]
            progress.update(len(batch))
    for header in headers[1:]:
        require_alike(header, headers[0])
    return headers


def require_alike(header: Header, first: Header) -> None:
    """Raise `InputError` unless `header` has the grid and the units of `first`."""
    for name in field_names(first.template):
        units, expected = (each.template[name].attrs["units"] for each in (header, first))
        if units != expected:
            raise InputError(
                f"{header.path}: '{name}' has units '{units}', expected '{expected}' as in {first.path}: "
                "keep archives of different units apart"
            )
    if not _same_grid(header.template, first.template):
        raise InputError(
            f"{header.path}: the grid is {grid_text(header.template)}, expected {grid_text(first.template)} as in "
            f"{first.path}: keep archives of different grids apart"
        )


def grid_text(grid: xr.Dataset) -> str:
    """Return a grid in words: '765 x 700 cells, y -3650.5 to -4414.5 km, x 0.5 to 699.5 km'."""
    axes = ", ".join(
        f"{axis} {grid[axis].values[0]:g} to {grid[axis].values[-1]:g} {grid[axis].attrs.get('units', '')}".rstrip()
        for axis in (Y, X)
    )
    name = grid[GRID_MAPPING].attrs.get("grid_mapping_name") if GRID_MAPPING in grid.coords else None
    return f"{grid.sizes[Y]} x {grid.sizes[X]} cells, {axes}" + (f", {name}" if name else "")


def _same_grid(one: xr.Dataset, other: xr.Dataset) -> bool:
    for axis in (Y, X):
        here, there = one[axis], other[axis]
        if here.shape != there.shape or here.attrs.get("units") != there.attrs.get("units"):
            return False
        tolerance = 1e-3 * spacing(there.values) if there.size > 1 else 0.0
        if not np.allclose(here.values, there.values, rtol=0, atol=tolerance):
            return False
    for name in (LATITUDE, LONGITUDE):
        if (name in one.coords) != (name in other.coords):
            return False
        if name in one.coords and not np.allclose(one[name], other[name], rtol=0, atol=1e-3, equal_nan=True):
            return False
    return bool(crs_wkt(one) == crs_wkt(other))


def is_url(path: str) -> bool:
    """Return whether `path` names something behind a protocol, such as 'https://…' or 's3://…'."""
    return "://" in path


def fetch(
    path: str, sha256: str | None, folder: Path | None = None, storage_options: Mapping[str, Any] | None = None
) -> Path:
    """Return the local file that a path or URL names, downloaded once into `folder` if it is a URL.

    A URL is not asked again once its file is there. Raise `InputError` where the file is missing, the download fails
    or `sha256` is not the file's.
    """
    local = _download(path, folder or _cache(), storage_options or {}) if is_url(path) else Path(path).expanduser()
    if not local.is_file():
        raise InputError(f"{path}: no such file; correct the path")
    if sha256 and (digest := file_sha256(local)) != sha256.lower():
        hint = f"delete {local} to fetch it again or" if is_url(path) else "replace the file or"
        raise InputError(f"{path}: sha256 is {digest}, expected {sha256.lower()}: {hint} correct the checksum")
    return local


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fieldcast"


def _download(url: str, folder: Path, storage_options: Mapping[str, Any]) -> Path:
    name = url.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    target = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}"
    if target.is_file():
        return target
    try:
        with replacing(target, writer=os.getpid()) as partial:  # other processes may want it at the same time
            if url.startswith(("http://", "https://")):
                with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer, partial.open("wb") as file:  # noqa: S310
                    shutil.copyfileobj(answer, file)
            else:
                fsspec.open(url, **storage_options).fs.get_file(url, str(partial))
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{url}: download failed: {error}; check the address") from error
    except Exception as error:  # each protocol raises its own kinds
        if is_full(error):
            raise
        raise InputError(f"{url}: download failed: {one_line(error)}; check the address and the network") from error
    return target


def one_line(error: BaseException) -> str:
    """Return an error's message without line breaks."""
    return redacted(" ".join(str(error).split())) or type(error).__name__
