"""Checksums of what a stage has written, by which damage is found when it is read, and named with its file.

A folder has a `manifest.json` with size and SHA-256 of each of its files; a file alone has its SHA-256 at its end,
where HDF5 and NetCDF readers do not look. Both are checked by those who read, before they decode anything.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fieldcast.pipeline.errors import DamagedError

MANIFEST = "manifest.json"
REMEDY = "restore it (dvc checkout --force), or remove the whole output and run dvc repro"
MARK = b"\nsha256 "  # of the SHA-256 at the end of a file
TAIL_BYTES = len(MARK) + 65
KEY = "sha256"  # of the rest of a JSON object

Files = dict[str, dict[str, Any]]  # relative path -> size and SHA-256


def write(folder: Path) -> None:
    """Write the manifest of a folder that is complete; whoever syncs the folder syncs it too."""
    (folder / MANIFEST).write_bytes(sealed({"files": facts_of_files(folder)}))


def facts_of_files(folder: Path) -> Files:
    """Return size and SHA-256 of every file below a folder, but for its manifest."""
    return {name: facts((folder / name).read_bytes()) for name in sorted(_names(folder) - {MANIFEST})}


def facts(content: bytes) -> dict[str, Any]:
    """Return size and SHA-256 of a file."""
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def read(folder: Path, fix: str = REMEDY) -> Files:
    """Return the files that a folder's manifest lists; raise `DamagedError` where it is not what was written."""
    return files_of(folder / MANIFEST, read_bytes(folder / MANIFEST, fix), fix)


def files_of(path: Path, text: bytes, fix: str = REMEDY) -> Files:
    """Return the files that the text of the manifest at `path` lists."""
    content = unsealed(path, text, fix)
    if "files" not in content:
        raise DamagedError(f"{path}: lists no files: {fix}")
    files: Files = content["files"]
    return files


def check(folder: Path, files: Files, fix: str = REMEDY, whole: Callable[[str], bool] | None = None) -> None:
    """Raise `DamagedError`, naming the file, where a folder has not the names, sizes and bytes that `files` lists.

    `whole` chooses the files whose bytes are read, all by default; of the others only the sizes are looked at.
    """
    present = _names(folder) - {MANIFEST}
    if different := sorted(present ^ set(files)):
        what = "is not in the manifest" if different[0] in present else "is missing"
        raise DamagedError(f"{folder / different[0]}: {what}: {fix}")
    for name, expected in files.items():
        if whole is None or whole(name):
            require(folder / name, read_bytes(folder / name, fix), expected, fix)
        elif (size := (folder / name).stat().st_size) != expected["bytes"]:
            raise DamagedError(f"{folder / name}: has {size} bytes, expected {expected['bytes']}: {fix}")


def read_file(path: Path, fix: str = REMEDY) -> bytes:
    """Return a file of a folder with a manifest, read once; raise `DamagedError` where its bytes have changed."""
    files = read(path.parent, fix)
    if path.name not in files:
        raise DamagedError(f"{path}: is not in the manifest: {fix}")
    content = read_bytes(path, fix)
    require(path, content, files[path.name], fix)
    return content


def require(path: Path, content: bytes, expected: Mapping[str, Any], fix: str) -> None:
    """Raise `DamagedError` unless the content of a file is the `expected` one."""
    if (got := facts(content)) != expected:
        raise DamagedError(f"{path}: is {got}, expected {dict(expected)}: {fix}")


def read_bytes(path: Path, fix: str) -> bytes:
    """Return the content of a file that must be there; raise `DamagedError` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read ({error.strerror}): {fix}") from error


def sealed(content: Mapping[str, Any]) -> bytes:
    """Return a JSON object with the SHA-256 of the rest of it."""
    return (json.dumps({**content, KEY: digest(content)}, indent=1, sort_keys=True) + "\n").encode()


def unsealed(path: Path, text: bytes, fix: str = REMEDY) -> dict[str, Any]:
    """Return the content of `sealed`, read from `path`; raise `DamagedError` if it has changed."""
    try:
        content: dict[str, Any] = json.loads(text)
        expected = content.pop(KEY)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read ({error}): {fix}") from error
    if (found := digest(content)) != expected:
        raise DamagedError(f"{path}: sha256 is {found}, expected {expected}: {fix}")
    return content


def digest(content: Any) -> str:
    """Return the SHA-256 of what JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def with_tail(content: bytes) -> bytes:
    """Return a file's content followed by its SHA-256."""
    return content + MARK + hashlib.sha256(content).hexdigest().encode() + b"\n"


def without_tail(path: Path, fix: str = REMEDY) -> bytes:
    """Return the content of a file that ends in its SHA-256; raise `DamagedError` where they disagree."""
    stored = read_bytes(path, fix)
    content = stored[:-TAIL_BYTES]
    if stored != with_tail(content):
        raise DamagedError(f"{path}: its bytes are not those that were written (SHA-256 at its end): {fix}")
    return content


def _names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if not file.is_dir()}
