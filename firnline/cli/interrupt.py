"""An orderly end: what an interrupt means to a command that does jobs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from firnline.cli.console import err

_stopped = threading.Event()


@contextmanager
def stop_on_signal() -> Iterator[threading.Event]:
    """An event that an interrupt or a termination sets; a second one ends the process at once.

    Then nothing is handed back, no thread waited for that waits for a source itself: whoever takes
    the job over when its lease runs out goes on where it was, as after a kill.
    """
    stop = threading.Event()

    def handle(signum: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(128 + signum)
        stop.set()
        err.print("stopping; the job goes back to the queue (again to stop at once)")

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if stop.is_set():
            _stopped.set()


def leave(code: int) -> NoReturn:
    """End the process: where it was told to stop, without its threads that wait for a source."""
    if _stopped.is_set() or code == 128 + signal.SIGINT:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
