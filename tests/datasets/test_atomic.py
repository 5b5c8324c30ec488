"""Names that change in one step, the order in which the disk gets to know, and the sweep after a killed writer."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fieldcast.pipeline.datasets import atomic
from fieldcast.pipeline.datasets.atomic import (
    ABANDONED_SECONDS,
    fsync_tree,
    make_folder,
    needing,
    partial_of,
    rename,
    replace_durable,
    replacing,
    sweep_partial,
)
from fieldcast.pipeline.errors import CannotWriteError


def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "latest.json"
    replace_durable(path, b"old")
    seen = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        seen.append((path.read_bytes(), Path(source).read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    replace_durable(path, b"new")
    assert seen == [(b"old", b"new")]
    assert path.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["latest.json"]


def test_a_file_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = tmp_path / "latest.json", list[str]()
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        done.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    replace_durable(path, b"new")
    assert done == [partial_of(path).name, "renamed", tmp_path.name]


def test_rename_takes_no_name_that_is_in_use(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()  # empty: the system's own rename would replace it
    with pytest.raises(FileExistsError, match="b"):
        rename(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b").rmdir()
    rename(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_every_new_folder_is_entered_in_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(atomic, "fsync_folder", synced.append)
    make_folder(tmp_path / "a/b/c")
    make_folder(tmp_path / "a/b/c")
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a/b"]


def test_a_tree_is_synced_from_the_inside_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    for name in ("a/b/one", "a/two", "three"):
        (tmp_path / name).write_text(name)
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(str(Path(f"/proc/self/fd/{number}").readlink())))
    fsync_tree(tmp_path)
    assert sorted(synced) == sorted(str(path) for path in (tmp_path, *tmp_path.rglob("*")))
    for path in synced:
        if Path(path).is_dir():
            assert all(synced.index(str(inner)) < synced.index(path) for inner in Path(path).rglob("*"))


def test_a_full_disk_says_how_much_to_free(tmp_path: Path) -> None:
    full = pytest.raises(CannotWriteError, match=r"bytes and \d+ inodes free\): free 3 MB there")
    with full, needing(2_000_001, tmp_path / "store"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OSError, match="Input/output") as caught, needing(1, tmp_path / "store"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert not isinstance(caught.value, CannotWriteError)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_folder(folder: Path, content: str) -> None:
    folder.mkdir()
    (folder / "a").write_text(content)


def fail_after(write: Callable[[Path, str], object], path: Path, content: str) -> None:
    write(path, content)
    raise FileNotFoundError(path)


def test_a_folder_appears_whole_and_takes_the_place_of_an_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new/folder"
    for content in ("one", "two"):
        with replacing(path) as partial:
            write_folder(partial, content)
            assert not path.exists() or (path / "a").read_text() == "one"
        assert (path / "a").read_text() == content
    assert names(path.parent) == ["folder"]


def test_an_error_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    write_folder(tmp_path / "folder", "old")
    (tmp_path / "file").write_text("old")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "folder") as partial:
        fail_after(write_folder, partial, "half")
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file") as partial:
        fail_after(Path.write_text, partial, "half")
    assert (tmp_path / "folder/a").read_text() == (tmp_path / "file").read_text() == "old"
    assert names(tmp_path) == ["file", "folder"]


def test_everything_is_synced_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename_, fsync = os.rename, os.fsync

    def renamed(source: Path, target: Path) -> None:
        events.append(f"rename {Path(target).name}")
        rename_(source, target)

    def synced(number: int) -> None:
        events.append(f"sync {Path(f'/proc/self/fd/{number}').readlink().name}")
        fsync(number)

    write_folder(tmp_path / "folder", "old")
    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    with replacing(tmp_path / "folder") as partial:
        write_folder(partial, "new")
    assert events == [
        "sync a",
        "sync .folder.partial",
        "rename .folder.partial-old",
        "rename folder",
        f"sync {tmp_path.name}",
    ]


def test_what_a_killed_writer_left_is_swept(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    write_folder(partial_of(path), "half")
    sweep_partial(path)
    assert not names(tmp_path)
    write_folder(tmp_path / ".a.zarr.partial-old", "old")  # killed between the two renames
    sweep_partial(path)
    assert names(tmp_path) == ["a.zarr"]
    partial_of(tmp_path / "file").write_text("half")
    sweep_partial(tmp_path / "file")
    assert names(tmp_path) == ["a.zarr"]


def test_writers_side_by_side_leave_each_other_alone_until_one_is_abandoned(tmp_path: Path) -> None:
    path = tmp_path / "download.nc"
    with replacing(path, writer=1) as one, replacing(path, writer=2) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"
    left, fresh = partial_of(path, 3), partial_of(path, 4)
    for partial in (left, fresh, tmp_path / ".download.nc.other.partial"):
        partial.write_text("half")
    long_ago = left.stat().st_mtime - ABANDONED_SECONDS - 1
    os.utime(left, (long_ago, long_ago))
    sweep_partial(path)
    assert names(tmp_path) == [".download.nc.4.partial", ".download.nc.other.partial", "download.nc"]


@pytest.mark.parametrize("syscall", ["rename", "fsync", "replace"])
def test_killed_at_any_point_the_name_shows_the_old_or_the_new(tmp_path: Path, syscall: str) -> None:
    """Kill the writer at its first, second, ... call, until one call survives; the next writer finishes the work."""
    program = (
        "import os, signal, sys; from pathlib import Path; from fieldcast.pipeline.datasets.atomic import *\n"
        "real, left = getattr(os, sys.argv[1]), [int(sys.argv[2])]\n"
        "def call(*arguments):\n"
        "    left[0] -= 1\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if left[0] < 0 else None\n"
        "    return real(*arguments)\n"
        "setattr(os, sys.argv[1], call)\n"
        "folder = Path(sys.argv[3])\n"
        "with replacing(folder / 'folder') as partial:\n"
        "    partial.mkdir(); (partial / 'a').write_text('new')\n"
        "replace_durable(folder / 'file', b'new')\n"
    )
    for calls in range(10):
        write_folder(tmp_path / "folder", "old")
        (tmp_path / "file").write_text("old")
        ended = subprocess.run([sys.executable, "-c", program, syscall, str(calls), str(tmp_path)], check=False)
        assert (tmp_path / "file").read_text() in ("old", "new")
        sweep_partial(tmp_path / "folder")
        sweep_partial(tmp_path / "file")
        assert (tmp_path / "folder/a").read_text() in ("old", "new")
        assert names(tmp_path) == ["file", "folder"]
        atomic._remove(tmp_path / "folder")
        if ended.returncode == 0:
            assert calls > 0
            return
        assert ended.returncode == -signal.SIGKILL
    raise AssertionError("the writer was killed every time")
