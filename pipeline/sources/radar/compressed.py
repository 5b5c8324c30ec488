"""Whole files, plain or gzip, read with errors that name them."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from fieldcast.pipeline.errors import InputError


def read_bytes(path: str, what: str) -> bytes:
    """Return the content of a file, unpacked where its name ends in .gz; raise `InputError` where it can't be read."""
    try:
        raw = Path(path).read_bytes()
        return gzip.decompress(raw) if path.endswith(".gz") else raw
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: truncated file, expected {what}: replace the file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}), expected {what}: replace the file") from error
