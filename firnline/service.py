"""The service: API, a worker below it, first and scheduled harvests."""

from __future__ import annotations

import gc
import ipaddress
import socket
import threading
from contextlib import ExitStack
from datetime import UTC, datetime
from typing import Any

import structlog
import uvicorn
from sqlalchemy import Engine

from firnline import keys
from firnline.api.app import create_app
from firnline.cache.refresh import mark_stale
from firnline.child import WorkerProcess
from firnline.database import connect, is_empty, migrate
from firnline.errors import (
    ConflictError,
    DatabaseError,
    FirnlineError,
    InputError,
    SourceUnreachableError,
)
from firnline.indexer.cubes import deepen
from firnline.indexer.harvest import harvest
from firnline.indexer.schedule import Schedule
from firnline.settings import Settings

log = structlog.get_logger(__name__)

_AGAIN = 60.0  # seconds to the next try of a first harvest
_LONGEST_WAIT = 60.0  # seconds without a look at the clock


class Service:
    """Serves until it's told to stop, as by an interrupt.

    Parameters
    ----------
    settings
        All settings.
    host, port
        Where to listen; port 0 takes a free one, see :attr:`url`.
    worker, harvest
        Whether to do jobs, in a process of their own, and to harvest an empty catalog and on
        schedule (``settings.harvest_schedule``), in a thread.

    Attributes
    ----------
    url
        Address of the API.

    Raises
    ------
    InputError
        A public address, and nothing that says who may start jobs; a bad schedule.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        worker: bool = True,
        harvest: bool = True,
    ) -> None:
        self._schedule = Schedule(settings.harvest_schedule) if settings.harvest_schedule else None
        self._settings, self._worker, self._harvest = settings, worker, harvest
        self._engine = connect(settings.database)
        migrate(self._engine)
        if settings.api_keys_required and not _is_loopback(host):
            self._check_keys(host)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._started = ExitStack()
        try:
            self._socket = socket.create_server((host, port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"can't listen on {host}:{port}: {reason}") from None
        address = f"[{host}]" if ":" in host else host
        self.url = f"http://{address}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            create_app(settings, self._engine),
            log_level="warning",
            proxy_headers=True,
            timeout_graceful_shutdown=10,
        )
        self._server = uvicorn.Server(config)

    def _check_keys(self, host: str) -> None:
        if not any(key.valid for key in keys.every(self._engine)):
            self._engine.dispose()
            raise InputError(
                f"on {host} anyone could start jobs: make an API key by `firnline key add NAME`, "
                "listen on 127.0.0.1, or set FIRNLINE_API_KEYS_REQUIRED=false where a proxy in "
                "front decides who may come in"
            )

    @property
    def engine(self) -> Engine:
        """The database that is served."""
        return self._engine

    def run(self) -> None:
        """Serve in this thread until interrupted."""
        log.info("serving", url=self._settings.public_url or self.url)
        self._start_threads()
        gc.collect()
        gc.freeze()  # what libraries made at import is not looked through again while one searches
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self.close()

    def __enter__(self) -> Service:
        """Serve from a thread until the block ends."""
        self._start_threads()
        # uvicorn installs signal handlers only in a main thread
        self._spawn(self._server.run, {"sockets": [self._socket]})
        while not self._server.started:
            if not self._threads[-1].is_alive():
                raise FirnlineError("the server did not start")
            self._stop.wait(0.02)
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self.close()

    def _start_threads(self) -> None:
        if self._harvest:
            self._spawn(self._harvests, {})
        if self._worker:
            self._started.enter_context(WorkerProcess(self._settings))

    def _spawn(self, target: Any, arguments: dict[str, Any]) -> None:
        thread = threading.Thread(target=target, kwargs=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        """Stop the threads and give back the port; a job under way goes back to the queue."""
        self._stop.set()
        self._started.close()
        for thread in self._threads:
            thread.join(timeout=15)
        self._socket.close()
        self._engine.dispose()

    def _harvests(self) -> None:
        """The first harvest, then those on schedule; errors are logged, and end nothing."""
        wait = 0.0
        while not self._stop.wait(wait) and self._is_empty():
            log.info("the catalog is empty: harvesting", sources=self._settings.catalog_urls)
            # An outage passes; for what else is wrong, it is enough to say it once.
            if not self._harvested(deep=False):
                break
            wait = _AGAIN
        if self._schedule is None:
            return
        while (at := self._schedule.next(datetime.now(UTC))) is not None:
            log.info("next harvest", at=f"{at:%Y-%m-%d %H:%M} UTC")
            # In steps, since the clock may be set, or the machine sleep, in between.
            while (left := (at - datetime.now(UTC)).total_seconds()) > 0:
                if self._stop.wait(min(left, _LONGEST_WAIT)):
                    return
            self._harvested(deep=True)

    def _is_empty(self) -> bool:
        try:
            return is_empty(self._engine)
        except DatabaseError as error:
            log.error("the database can't be read", reason=str(error))
            return True

    def _harvested(self, *, deep: bool) -> bool:
        """Harvest once and log what came of it; True if it's worth to try soon again."""

        def progress(phase: str, done: int, total: int) -> None:
            if total and done == total:
                log.info("harvest", phase=phase, items=total)

        sources = self._settings.catalog_urls
        try:
            report = harvest(self._engine, self._settings, sources, deep=deep, progress=progress)
            deeper = None
            if deep:
                deeper = deepen(self._engine, self._settings, progress, run=report.run)
                for id in mark_stale(self._engine):
                    log.info("subset is stale: made anew when it's asked for", subset=id)
        except (SourceUnreachableError, DatabaseError, ConflictError) as error:
            log.error("harvest failed; it's tried again", reason=str(error))
            return True
        except FirnlineError as error:
            log.error("harvest failed; try `firnline harvest`", reason=str(error))
            return False
        except Exception:
            # a bug in a harvest must not end the service: searches go on with the old catalog
            log.exception("harvest failed by an error of firnline's own")
            return False
        for line in report.lines() + ([] if deeper is None else deeper.lines()):
            log.info(line)
        return False


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
