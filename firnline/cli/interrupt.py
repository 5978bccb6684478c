"""An orderly end: what an interrupt means to a command that does jobs."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from firnline.cli.console import err


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that an interrupt or a termination sets; a second one ends at once."""
    stop = threading.Event()

    def handle(signum: int, _frame: object) -> None:
        if stop.is_set():
            sys.exit(128 + signum)
        stop.set()
        err.print("stopping; the job goes back to the queue (again to stop at once)")

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
