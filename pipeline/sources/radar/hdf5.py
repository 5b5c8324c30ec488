"""HDF5 opened with errors that name the file and the field."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import h5py

from fieldcast.pipeline.errors import InputError
from fieldcast.pipeline.sources.declared import check_hdf5

# what HDF5, and code that trusts it, make of a file with changed bytes
BROKEN = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, ArithmeticError)


@contextmanager
def opened(path: str, what: str) -> Iterator[h5py.File]:
    """Yield the open file; raise `InputError` when it is no HDF5, truncated, or lacks what `what` files hold."""
    try:
        check_hdf5(path)
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except (OSError, *BROKEN) as error:
        raise InputError(
            f"{path}: {_reason(error)}, expected {what}: replace the file or correct source.format"
        ) from error
    except KeyError as error:
        raise InputError(
            f"{path}: {' '.join(str(error.args[0]).split())}, expected {what}: correct source.path or source.format"
        ) from error


def _reason(error: Exception) -> str:
    text = str(error)
    if "truncated" in text:
        return "truncated file"
    if "signature not found" in text:
        return "no HDF5 file"
    return "cannot be read (" + " ".join(text.split()) + ")"


def attribute(owner: h5py.HLObject, name: str) -> Any:
    """Return an attribute as a plain Python value: text, number, or a list of numbers."""
    if name not in owner.attrs:
        raise KeyError(f"no attribute '{name}' in '{owner.name}'")
    value = owner.attrs[name]
    if getattr(value, "size", 1) == 1 and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip("\x00 ")
    return value.tolist() if hasattr(value, "tolist") else value
