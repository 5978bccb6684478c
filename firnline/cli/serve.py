"""What runs until it is told to stop: ``serve``, ``worker``; and the ``demo``."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Annotated

import typer

from firnline import logs
from firnline.child import step_back
from firnline.cli.console import err, out, percent
from firnline.cli.installation import load_settings, open_database
from firnline.cli.interrupt import stop_on_signal
from firnline.settings import Settings


def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    worker: Annotated[
        bool, typer.Option(help="Do jobs as well, by a process below this one.")
    ] = True,
    harvest: Annotated[
        bool, typer.Option(help="Harvest an empty catalog, and on schedule.")
    ] = True,
) -> None:
    """Serve the STAC API and the processes, with a worker; harvests an empty catalog first."""
    from firnline.service import Service

    settings = load_settings()
    service = Service(settings, host=host, port=port, worker=worker, harvest=harvest)
    service.run()


def worker(
    once: Annotated[bool, typer.Option("--once", help="Do one job, if there is one.")] = False,
    child: Annotated[
        bool,
        typer.Option("--child", hidden=True, help="As a child of `serve`: end with its input."),
    ] = False,
) -> None:
    """Take jobs from the queue until stopped."""
    step_back()
    from firnline.cache import worker as working

    settings = load_settings()
    engine = open_database(settings, migrated=not child)
    with stop_on_signal() as stop:
        if child:
            threading.Thread(target=_until_input_ends, args=(stop,), daemon=True).start()
        if once:
            if not working.run_next(engine, settings, working.worker_name(), stop=stop):
                err.print("no job waits")
        else:
            working.run(engine, settings, stop)


def _until_input_ends(stop: threading.Event) -> None:
    sys.stdin.buffer.read()
    stop.set()


def demo(
    dir: Annotated[Path, typer.Option(help="Where the demo's data go.")] = Path("demo-data"),
    serve: Annotated[bool, typer.Option("--serve", help="Keep serving at the end.")] = False,
) -> None:
    """Do the whole job on a small synthetic ITS_LIVE, offline: harvest, search, materialise."""
    from firnline.demo import run

    logs.configure(Settings(log_level="WARNING", _env_file=None))
    run(dir, console=out, progress=lambda: percent(False), keep_serving=serve)
