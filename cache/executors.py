"""Where the tiles of a job are done: by this process, or by an executor."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor
from contextlib import contextmanager

from firnline.errors import JobError
from firnline.settings import Settings

_TIMEOUT = "20s"  # to reach the scheduler


@contextmanager
def tile_executor(settings: Settings) -> Iterator[Executor | None]:
    """The executor of the settings; None: the threads of this process.

    Raises
    ------
    JobError
        It can't be reached, or was lost.
    """
    if not settings.dask_scheduler:
        yield None
        return
    try:
        from distributed import Client, KilledWorker
        from distributed.comm.core import CommClosedError
    except ImportError:
        raise JobError(
            "FIRNLINE_DASK_SCHEDULER is set, and distributed is not installed: "
            "pip install firnline[dask]"
        ) from None
    try:
        client = Client(  # type: ignore[no-untyped-call]
            settings.dask_scheduler, timeout=_TIMEOUT, set_as_default=False
        )
    except (OSError, ValueError) as error:
        raise JobError(f"no Dask scheduler at {settings.dask_scheduler}: {error}") from error
    with client:
        try:
            with client.get_executor(pure=False) as executor:  # type: ignore[no-untyped-call]
                yield executor
        except (KilledWorker, CommClosedError, CancelledError, BrokenExecutor) as error:
            reason = str(error) or type(error).__name__
            raise JobError(f"Dask at {settings.dask_scheduler} lost tiles: {reason}") from error
