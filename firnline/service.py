"""The service: API, worker and first harvest in one process."""

from __future__ import annotations

import ipaddress
import socket
import threading
from typing import Any

import structlog
import uvicorn
from sqlalchemy import Engine

from firnline.api.app import create_app
from firnline.cache import worker
from firnline.database import connect, is_empty, migrate
from firnline.errors import FirnlineError, InputError, SourceUnreachableError
from firnline.indexer.harvest import harvest
from firnline.settings import Settings

log = structlog.get_logger(__name__)


class Service:
    """Serves until it's told to stop, as by an interrupt.

    Parameters
    ----------
    settings
        All settings.
    host, port
        Where to listen; port 0 takes a free one, see :attr:`url`.
    worker, harvest
        Whether to do jobs, and to harvest an empty catalog, in threads of this process.

    Attributes
    ----------
    url
        Address of the API.

    Raises
    ------
    InputError
        A public address, and nothing that says who may start jobs.
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
        if settings.api_keys_required and not _is_loopback(host):
            raise InputError(
                f"on {host} anyone could start jobs: listen on 127.0.0.1, or set "
                "FIRNLINE_API_KEYS_REQUIRED=false where a proxy in front decides who may come in"
            )
        self._settings, self._worker, self._harvest = settings, worker, harvest
        self._engine = connect(settings.database)
        migrate(self._engine)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
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

    @property
    def engine(self) -> Engine:
        """The database that is served."""
        return self._engine

    def run(self) -> None:
        """Serve in this thread until interrupted."""
        log.info("serving", url=self._settings.public_url or self.url)
        self._start_threads()
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
        if self._harvest and is_empty(self._engine):
            self._spawn(self._first_harvest, {})
        if self._worker:
            arguments = (self._engine, self._settings, self._stop)
            self._spawn(lambda: worker.run(*arguments), {})

    def _spawn(self, target: Any, arguments: dict[str, Any]) -> None:
        thread = threading.Thread(target=target, kwargs=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def close(self) -> None:
        """Stop the threads and give back the port; a job under way goes back to the queue."""
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=15)
        self._socket.close()
        self._engine.dispose()

    def _first_harvest(self) -> None:
        log.info("the catalog is empty: harvesting", sources=self._settings.catalog_urls)

        def progress(phase: str, done: int, total: int) -> None:
            if total and done == total:
                log.info("harvest", phase=phase, items=total)

        while not self._stop.is_set():
            try:
                report = harvest(
                    self._engine, self._settings, self._settings.catalog_urls, progress=progress
                )
            except SourceUnreachableError as error:
                log.error("harvest failed, trying again in a minute", reason=str(error))
                self._stop.wait(60)
            except FirnlineError as error:
                log.error("harvest failed; try `firnline harvest`", reason=str(error))
                return
            else:
                for line in report.lines():
                    log.info(line)
                return


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
