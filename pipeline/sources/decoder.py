"""Foreign files decoded in child processes, within bounds of time and memory.

Decoders of HDF5, NetCDF, GRIB and Zarr are C code that meets bytes of others: a file of a few kilobytes may fill the
memory, hang, or end the process that reads it. So all of it happens in children, which live on from file to file; one
that ends or takes too long costs its file alone.
"""

from __future__ import annotations

import atexit
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import ceil
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Semaphore
from typing import Any, TypeVar

from fieldcast.pipeline.config.sources import Decoding
from fieldcast.pipeline.errors import InputError

MOST_CHILDREN = 8  # of a process: each has a hundred megabytes of its own
START_SECONDS = 120  # a child's imports, on a machine with other work
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MALLOC_ARENA_MAX"), "1")
MAIN = "import sys; from fieldcast.pipeline.sources.decoder import serve; serve(int(sys.argv[1]))"
PAGE_BYTES = resource.getpagesize()

T = TypeVar("T")


class SlowError(InputError):
    """A file that is not decoded in the time it has."""


_seconds: ContextVar[float | None] = ContextVar("seconds", default=None)
# by process, since a fork shares no child with its parent
_idle: dict[int, list[Child]] = {}
_slots: dict[int, Semaphore] = {}


def decode(where: str, bounds: Decoding, work: Callable[..., T], *arguments: Any) -> T:
    """Return `work(*arguments)`, done in a child; function, arguments and result are pickled.

    Raise `InputError` about `where` for whatever goes wrong there, `SlowError` where it takes too long.
    """
    at_most = _seconds.get()
    seconds = bounds.max_seconds if at_most is None else min(at_most, bounds.max_seconds)
    with _slots.setdefault(os.getpid(), Semaphore(MOST_CHILDREN)):
        idle = _idle.setdefault(os.getpid(), [])
        child = idle.pop() if idle else Child()
        try:
            result, error = child.ask(where, (work, arguments), seconds, bounds.max_megabytes)
        except BaseException:
            child.end()
            raise
        idle.append(child)
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Leave everything that is decoded by this thread inside the block so many seconds, if it had more."""
    token = _seconds.set(seconds)
    try:
        yield
    finally:
        _seconds.reset(token)


class Child:
    """A process that decodes what it is asked to, one thing after the other, and ends with its parent."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        with theirs:
            environment = os.environ | THREADS | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
            self._process = subprocess.Popen(  # noqa: S603  # this Python, with a text of ours
                [sys.executable, "-W", "ignore", "-c", MAIN, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # what C libraries say of broken files
                env=environment,
            )
        if not self._connection.poll(START_SECONDS):
            self.end()
            raise RuntimeError(f"the process that decodes files did not start within {START_SECONDS} s")
        self._receive("the process that decodes files")

    def ask(
        self, where: str, work: tuple[Callable[..., Any], tuple[Any, ...]], seconds: float, megabytes: float
    ) -> tuple[Any, Exception | None]:
        """Return the result of `work`, or its error; raise `InputError` where the child has ended or must be."""
        self._connection.send((where, str(Path.cwd()), seconds, megabytes, work))
        if not self._connection.poll(seconds):
            raise SlowError(
                f"{where}: not decoded in {seconds:g} s: take the file out or raise decoding.max_seconds of its source"
            )
        return self._receive(where)  # type: ignore[no-any-return]

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _receive(self, where: str) -> Any:
        try:
            return self._connection.recv()
        except (EOFError, OSError) as error:
            code = self._process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise InputError(f"{where}: its decoder was ended by it ({how}): replace the file") from error


@atexit.register
def _end_all() -> None:
    for child in _idle.pop(os.getpid(), []):
        child.end()


def serve(descriptor: int) -> None:
    """Decode what the parent asks for until it ends."""
    import fieldcast.pipeline.sources  # noqa: F401  # what decoders need, before there are bounds

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent decides
    connection = Connection(descriptor)
    connection.send("ready")
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        while True:
            where, folder, seconds, megabytes, (work, arguments) = connection.recv()
            os.chdir(folder)
            signal.alarm(ceil(seconds) + 1)  # a parent that is gone does not end a child that hangs
            with _bounded_memory(megabytes):
                answer = _answer(where, megabytes, work, arguments)
            signal.alarm(0)
            connection.send(answer)


def _answer(
    where: str, megabytes: float, work: Callable[..., Any], arguments: tuple[Any, ...]
) -> tuple[Any, Exception | None]:
    try:
        return work(*arguments), None
    except InputError as error:
        if not isinstance(error.__cause__, MemoryError):
            return None, error
    except MemoryError:
        pass
    except Exception as error:  # each decoder raises its own kinds, not all of which can be pickled
        text = " ".join(str(error).split()) or type(error).__name__
        return None, InputError(f"{where}: cannot be decoded ({text}): replace the file")
    return None, InputError(
        f"{where}: needs more than {megabytes:g} MB to be decoded: take the file out or raise decoding.max_megabytes "
        "of its source"
    )


@contextmanager
def _bounded_memory(megabytes: float) -> Iterator[None]:
    """Give the process so much address space beyond what it has, where the system bounds it and tells what it has."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        yield
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    size = int(statm.read_text().split()[0]) * PAGE_BYTES + int(megabytes * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
