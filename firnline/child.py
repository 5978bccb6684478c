"""A worker in a process of its own, below the one that serves.

In one process a job's Python and a search's take turns, and a search waits ten times as long; so
`serve` starts ``firnline worker``, at a lower priority, and starts it again should it die.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from types import TracebackType

import structlog

from firnline.settings import Settings

log = structlog.get_logger(__name__)

_BELOW = 10  # how much nicer than those who search
_AGAIN = 5.0  # seconds until a worker that died is started again
_PATIENCE = 20.0  # seconds that it may take to hand back its job


def step_back() -> None:
    """Let searches go first: this process works on while someone waits for them.

    To be called before threads are started, which have their creator's priority.
    """
    os.nice(_BELOW)
    if hasattr(os, "SCHED_BATCH"):  # Linux: nor does it interrupt them when its data come
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class WorkerProcess:
    """Runs ``firnline worker`` with these settings until it's stopped, or this process ends.

    The child ends when its standard input does, which is a pipe from here: whatever way this
    process goes, it does not stay behind.
    """

    def __init__(self, settings: Settings) -> None:
        self._environment = {**os.environ, **settings.environment()}
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="worker process", daemon=True)

    def __enter__(self) -> WorkerProcess:
        self._watcher.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._watcher.join()

    def _started(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "firnline.cli", "worker", "--child"]
        return subprocess.Popen(command, env=self._environment, stdin=subprocess.PIPE)

    def _watch(self) -> None:
        process = self._started()
        while not self._stop.wait(0.2):
            if process.poll() is not None:
                log.error("the worker died; another is started", exit=process.returncode)
                _close(process)
                if self._stop.wait(_AGAIN):
                    return
                process = self._started()
        _close(process)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            log.warning("the worker does not stop: its job is taken over when the lease runs out")
            process.kill()
            process.wait()


def _close(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
