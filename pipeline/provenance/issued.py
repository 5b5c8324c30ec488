"""Issued files: which cycle they are of, and whether their bytes are those that were published."""

from __future__ import annotations

import json
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import xarray as xr

from fieldcast.pipeline.datasets import store
from fieldcast.pipeline.errors import DamagedError, InputError
from fieldcast.pipeline.live.archive import publish
from fieldcast.pipeline.live.archive.exports import write_copies
from fieldcast.pipeline.live.archive.ledger import LEDGER, Cycle, Ledger
from fieldcast.pipeline.live.archive.products import PRODUCTS, has_products
from fieldcast.pipeline.live.clock import iso, parse
from fieldcast.pipeline.provenance.link import BrokenError, UncheckedError

KINDS = {".nc": "netcdf", ".tif": "geotiff"}


@dataclass(frozen=True)
class Issued:
    """A published store, or a copy of one: a NetCDF file or an image of a folder of GeoTIFFs."""

    path: Path
    init_time: datetime
    revision: int
    facts: dict[str, Any]  # what the file says of itself, as far as it can be read

    @classmethod
    def read(cls, path: Path) -> Issued:
        """Return what a file is; raise `InputError` for one that is no issued forecast.

        A file that is damaged is known by its name, such as `20261123T180500Z.r1.nc`.
        """
        if not path.exists():
            raise InputError(f"{path}: no such file, expected an issued forecast: of data/live/forecasts, or a copy")
        facts = _facts(path)
        name = path.parent.name if path.suffix == ".tif" else path.name
        stamp, _, rest = name.partition(".")
        revision = rest[1:].partition(".")[0] if rest.startswith("r") else "0"
        for moment, number in ((facts.get("init_time"), facts.get("revision")), (stamp, revision)):
            with suppress(TypeError, ValueError):
                return cls(path, parse(str(moment)), int(str(number)), facts)
        raise InputError(
            f"{path}: neither its attributes nor its name tell an init time, expected an issued forecast such as "
            "20261123T180500Z.zarr, .nc or .tif"
        )

    def check_bytes(self, folder: Path) -> str:
        """Return what has been compared; raise `BrokenError` where a byte is not as it was published."""
        published = publish.path_of(folder, self.init_time, self.revision)
        try:
            if self.path.is_dir():
                return f"{len(publish.check(self.path)['files'])} files as their manifest lists them"
            if not published.is_dir():
                raise UncheckedError(
                    f"{published} is gone (live.retention): nothing else tells the bytes of its copies"
                )
            publish.check(published)
        except DamagedError as error:
            raise BrokenError(str(error)) from error
        if self._copy_of(published) != self.path.read_bytes():
            raise BrokenError(
                f"{self.path}: its bytes are not those of a copy of {published} by the packages that are installed: "
                "remove it, and the next cycle writes copies of the last six hours again"
            )
        return f"byte for byte the copy of {published}"

    def check_row(self, folder: Path) -> tuple[str, Cycle]:
        """Return what the ledger says of the forecast, with its row; raise where both differ or there is none."""
        if not (folder / LEDGER).is_file():
            raise UncheckedError(f"{folder / LEDGER} is not there: --folder says where forecasts were issued")
        with Ledger(folder / LEDGER, read_only=True) as ledger:
            row = ledger.cycle(self.init_time, self.revision)
        if row is None or not row.manifest_sha256:
            raise BrokenError(f"{folder / LEDGER} knows no forecast of {iso(self.init_time)}, revision {self.revision}")
        for name, told in (("model", row.model), ("model_version", row.model_version), ("run_key", row.run_key)):
            if self.facts.get(name, told) != told:
                raise BrokenError(f"{name} is {self.facts[name]} in the file and {told} in {folder / LEDGER}")
        published = self.path if self.path.is_dir() else publish.path_of(folder, self.init_time, self.revision)
        if published.is_dir() and (sha256 := publish.manifest_digest(published)) != row.manifest_sha256:
            raise BrokenError(f"the manifest of {published} has SHA-256 {sha256}, in the ledger {row.manifest_sha256}")
        return f"{row.state} at {iso(row.ended_at) if row.ended_at else '?'}, manifest {row.manifest_sha256[:12]}", row

    def _copy_of(self, published: Path) -> bytes:
        """Return the content of the copy of a published forecast that has the kind and the name of this file."""
        stamp = published.stem
        products = store.open_whole(published / PRODUCTS) if has_products(published) else None
        with tempfile.TemporaryDirectory() as folder, store.open_forecasts(published) as forecast:
            write_copies(forecast, Path(folder), stamp, [KINDS[self.path.suffix]], products)
            further = ".products.nc" if self.path.name.endswith(".products.nc") else ".nc"
            image = self.path.suffix == ".tif"
            written = Path(folder, stamp, self.path.name) if image else Path(folder, f"{stamp}{further}")
            return written.read_bytes() if written.is_file() else b""


def _facts(path: Path) -> dict[str, Any]:
    """Return the attributes of a store, a NetCDF file or a GeoTIFF; none where it cannot be read."""
    if path.is_dir():
        try:
            facts: dict[str, Any] = json.loads((path / store.METADATA).read_bytes())["attributes"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return facts
    if path.suffix not in KINDS:
        raise InputError(f"{path}: expected a store (.zarr), a NetCDF file (.nc) or a GeoTIFF (.tif)")
    try:
        if path.suffix == ".nc":
            with xr.open_dataset(path, engine="h5netcdf") as copy:
                return dict(copy.attrs)
        import rasterio

        with rasterio.open(path) as image:
            return dict(image.tags())
    except Exception:  # damaged bytes may raise anything
        return {}
