"""Files and folders written beside their place, synced, then renamed: readers see the old or the new, never a half.

One rule for all: `name` is written as its hidden sibling `.name.partial`, or `.name.<writer>.partial` where several
processes may write the same name at once. A killed writer leaves `name` as it was; the next one sweeps what it began.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fieldcast.pipeline.errors import CannotWriteError

ABANDONED_SECONDS = 86_400  # a numbered writer that has changed nothing for so long was killed


def partial_of(path: Path, writer: int | None = None) -> Path:
    """Return the sibling that `path` is written as; `writer`, such as a process id, keeps several of them apart."""
    return path.with_name(f".{path.name}.partial" if writer is None else f".{path.name}.{writer}.partial")


@contextmanager
def replacing(path: Path, writer: int | None = None) -> Iterator[Path]:
    """Yield a sibling of `path` to write a file or a folder to, which then takes the place of `path`.

    It is synced first; in an error it is removed and `path` stays as it was. A folder that it replaces is moved aside
    for a moment; if a process is killed just then, the next call puts it back.
    """
    make_folder(path.parent)
    sweep_partial(path)
    partial = partial_of(path, writer)
    try:
        yield partial
        fsync_tree(partial)
    except BaseException:
        _remove(partial)
        raise
    if path.is_dir():
        aside = _aside(path)
        path.rename(aside)
        partial.rename(path)
        fsync_folder(path.parent)
        _remove(aside)
    else:
        partial.replace(path)
        fsync_folder(path.parent)


def sweep_partial(path: Path) -> None:
    """Remove what killed writers of `path` left behind; a folder that one was about to replace is put back."""
    aside = _aside(path)
    if aside.exists() and not path.exists():
        aside.rename(path)
    _remove(aside)
    _remove(partial_of(path))
    for partial in path.parent.glob(".*.[0-9]*.partial"):
        writer = partial.name.removeprefix(f".{path.name}.").removesuffix(".partial")
        if writer.isdecimal() and time.time() - partial.stat().st_mtime > ABANDONED_SECONDS:
            _remove(partial)


def replace_durable(path: Path, content: bytes) -> None:
    """Put `content` in the place of the file `path` in one step, also after power loss."""
    partial = partial_of(path)
    try:
        write_durable(partial, content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def write_durable(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it; its folder's entry needs `fsync_folder`."""
    with needing(len(content), path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`."""
    _fsync(folder, os.O_RDONLY | os.O_DIRECTORY)


def fsync_tree(path: Path) -> None:
    """Wait until the disk has a file, or every file below a folder, then every folder from the inside out."""
    if path.is_file():
        _fsync(path, os.O_RDONLY)
    for place, _, names in os.walk(path, topdown=False):
        for name in names:
            _fsync(Path(place, name), os.O_RDONLY)
        fsync_folder(Path(place))


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, and wait until the disk has them."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        fsync_folder(folder.parent)


def rename(source: Path, target: Path) -> None:
    """Give `source` its final name, which must be free, and wait until the disk has it."""
    if target.exists():
        raise FileExistsError(errno.EEXIST, "exists already", str(target))
    source.rename(target)
    fsync_folder(target.parent)


def free_bytes(folder: Path) -> int:
    """Return what an ordinary user may still write to the file system of `folder`."""
    return shutil.disk_usage(folder).free


@contextmanager
def needing(wanted: int, place: Path, remedy: str = "") -> Iterator[None]:
    """Turn the error of a full disk into a `CannotWriteError` that says how much to free for `wanted` bytes.

    `remedy` is another way to make room, such as 'or lower live.retention.days'.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free, inodes = free_bytes(place.parent), os.statvfs(place.parent).f_favail
        raise CannotWriteError(
            f"{place}: {error.strerror} ({free} bytes and {inodes} inodes free): "
            f"free {-(-wanted // 10**6)} MB there {remedy}".rstrip()
        ) from error


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial-old")


def _fsync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
