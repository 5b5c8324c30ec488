"""Signals that end a training: what is on disk stays for the next start, and the run is told how it ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGTERM, signal.SIGINT)


def terminate(number: int, frame: object = None) -> None:
    """End the process with the exit code that shells give a signal: 143 for SIGTERM, 130 for Ctrl-C."""
    raise SystemExit(128 + number)


def handle() -> None:
    """Let signals end this process by `terminate`; in other threads than the first they cannot."""
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            signal.signal(number, terminate)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let signals end the process by `terminate`, and as before afterwards."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handle()
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)
