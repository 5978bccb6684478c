"""The one door for commands: ``firnline …``.

Exit 0 good, 1 failed, 2 bad input. With ``--json`` stdout carries one JSON document and nothing
else; progress and logs go to stderr.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from firnline import logs
from firnline.errors import FirnlineError, InputError
from firnline.settings import Settings
from firnline.version import __version__

if TYPE_CHECKING:
    from sqlalchemy import Engine

app = typer.Typer(
    name="firnline",
    help="A STAC catalog and a local data cache for NASA's ITS_LIVE glacier velocities.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
cache_app = typer.Typer(help="The materialised subsets: what is stored.", no_args_is_help=True)
app.add_typer(cache_app, name="cache")

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def main() -> NoReturn:
    """Run the command line; errors that are meant for people are one line and an exit code."""
    try:
        app(standalone_mode=True)
    except InputError as error:
        err.print(f"error: {error}", markup=False)
        sys.exit(2)
    except FirnlineError as error:
        err.print(f"error: {error}", markup=False)
        sys.exit(1)
    sys.exit(0)


@app.command()
def migrate() -> None:
    """Bring the database's schema to the newest version."""
    settings = _settings()
    _database(settings)
    out.print(f"schema is up to date: {_shown_url(settings)}")


@app.command()
def harvest(
    sources: Annotated[
        list[str] | None,
        typer.Argument(help="Paths or URLs of datacube catalogs; default FIRNLINE_CATALOG_URLS."),
    ] = None,
    mosaics: Annotated[
        bool, typer.Option(help="Make the mosaics' items from their URL templates as well.")
    ] = True,
    deep: Annotated[
        bool,
        typer.Option(
            help="Also look at the files themselves: which mosaics exist, and each cube's own "
            "metadata and image pairs."
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Read a catalog that has not changed; accept one that lost many of its cubes.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would change.")] = False,
    as_json: Json = False,
) -> None:
    """Harvest the catalog of datacubes, and the mosaics, into the database."""
    from firnline.indexer.cubes import deepen
    from firnline.indexer.harvest import harvest as run

    settings = _settings()
    engine = _database(settings)
    with _phases(as_json) as progress:
        report = run(
            engine,
            settings,
            sources or list(settings.catalog_urls),
            mosaics=mosaics,
            deep=deep,
            force=force,
            dry_run=dry_run,
            progress=progress,
        )
        deeper = (
            deepen(engine, settings, progress, run=report.run) if deep and not dry_run else None
        )
    if as_json:
        _print_json(report.to_dict() | ({} if deeper is None else {"deep_read": deeper.to_dict()}))
        return
    for line in report.lines() + ([] if deeper is None else deeper.lines()):
        out.print(line, markup=False)


@app.command()
def materialise(
    bbox: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="West south east north, in the units of --crs.", metavar="W S E N"),
    ] = None,
    aoi: Annotated[
        Path | None, typer.Option(help="File with the area: GeoJSON, GeoPackage, Shapefile.")
    ] = None,
    crs: Annotated[
        str | None, typer.Option(help="CRS of --bbox (default OGC:CRS84), as EPSG:3413.")
    ] = None,
    datetime: Annotated[
        str, typer.Option(help="Period of the pairs' mid-dates, as 2018-01-01/2020-12-31.")
    ] = "../..",
    variables: Annotated[str, typer.Option(help="Comma-separated.")] = "vx,vy,v_error",
    collection: Annotated[str, typer.Option(help="Collection to read.")] = "itslive-cubes",
    satellites: Annotated[str, typer.Option(help="Comma-separated, as L8,S2.")] = "",
    min_dt: Annotated[float | None, typer.Option(help="Least days between the images.")] = None,
    max_dt: Annotated[float | None, typer.Option(help="Most days between the images.")] = None,
    composite: Annotated[str, typer.Option(help="P1Y, P1M, PnY, PnM, all or none.")] = "P1Y",
    strain: Annotated[bool, typer.Option(help="Strain rates of the composites.")] = True,
    length_scale: Annotated[
        float, typer.Option(help="Half length of the strain window, metres.")
    ] = 500.0,
    strain_method: Annotated[
        str, typer.Option(help="plane, nominal or logarithmic strain rates.")
    ] = "plane",
    strain_gaps: Annotated[
        str, typer.Option(help="Where pixels are missing: fit to the others, or strict.")
    ] = "fit",
    ice_temperature: Annotated[
        float | None, typer.Option(help="Kelvin: von Mises stresses at this temperature.")
    ] = None,
    out_crs: Annotated[str | None, typer.Option(help="CRS of the result.")] = None,
    format: Annotated[str, typer.Option(help="Zarr version: v3 or v2.")] = "v3",
    pairs: Annotated[bool, typer.Option(help="Store the image pairs.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan only.")] = False,
    wait: Annotated[
        bool, typer.Option(help="Do the job here; --no-wait leaves it to a worker.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Materialise an area and a period into one local store with composites and strain rates."""
    from firnline.cache import worker
    from firnline.cache.materialise import plan_request
    from firnline.cache.opening import ask, check, subset_folder
    from firnline.cache.request import Request

    settings = _settings()
    inputs: dict[str, Any] = {
        **_area(bbox, aoi, crs),
        "datetime": datetime,
        "variables": _words(variables),
        "collection": collection,
        "satellites": _words(satellites),
        "composite": None if composite == "none" else composite,
        "strain": {
            "method": strain_method,
            "length_scale": length_scale,
            "gaps": strain_gaps,
            "ice_temperature": ice_temperature,
        }
        if strain and composite != "none"
        else False,
        "out_crs": out_crs,
        "format": format,
        "pairs": pairs,
    }
    if min_dt is not None or max_dt is not None:
        inputs["dt_days"] = [min_dt or 0.0, 1e6 if max_dt is None else max_dt]
    request = Request.parse(inputs, settings)
    engine = _database(settings)
    if dry_run:
        check(engine, request)
        summary = plan_request(engine, settings, request, only_plan=True).summary()
        if as_json:
            _print_json(summary)
        else:
            _print_pairs(summary)
        return
    job = ask(engine, settings, request)
    if wait:
        with _stop_on_signal() as stop, _percent(as_json) as shown:
            job = worker.finish(engine, settings, job, stop=stop, shown=shown)
    answer: dict[str, Any] = {
        "job": job.id,
        "status": job.status,
        "message": job.message,
        "item": job.subset,
    }
    if job.subset is not None:
        answer["folder"] = str(subset_folder(engine, settings, job.subset))
    if as_json:
        _print_json(answer)
    elif job.status != "failed":
        _print_pairs({name: value for name, value in answer.items() if value is not None})
    if wait and job.status != "successful":
        if job.status == "failed":
            err.print(f"error: {job.message}", markup=False)
        raise typer.Exit(1)


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    worker: Annotated[bool, typer.Option(help="Do jobs in this process.")] = True,
    harvest: Annotated[
        bool, typer.Option(help="Harvest an empty catalog, and on schedule.")
    ] = True,
) -> None:
    """Serve the STAC API and the processes, with a worker; harvests an empty catalog first."""
    from firnline.service import Service

    settings = _settings()
    service = Service(settings, host=host, port=port, worker=worker, harvest=harvest)
    service.run()


@app.command()
def worker(
    once: Annotated[bool, typer.Option("--once", help="Do one job, if there is one.")] = False,
) -> None:
    """Take jobs from the queue until stopped."""
    from firnline.cache import worker as working

    settings = _settings()
    engine = _database(settings)
    with _stop_on_signal() as stop:
        if once:
            if not working.run_next(engine, settings, working.worker_name(), stop=stop):
                err.print("no job waits")
        else:
            working.run(engine, settings, stop)


@app.command()
def demo(
    dir: Annotated[Path, typer.Option(help="Where the demo's data go.")] = Path("demo-data"),
    serve: Annotated[bool, typer.Option("--serve", help="Keep serving at the end.")] = False,
) -> None:
    """Do the whole job on a small synthetic ITS_LIVE, offline: harvest, search, materialise."""
    from firnline.demo import run

    logs.configure(Settings(log_level="WARNING", _env_file=None))
    run(dir, console=out, progress=lambda: _percent(False), keep_serving=serve)


@app.command()
def status(
    settings_only: Annotated[
        bool, typer.Option("--settings", help="List every setting with its value.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how things are: database, catalog, jobs, store."""
    settings = _settings()
    if settings_only:
        rows = [
            {
                "name": f"FIRNLINE_{name.upper()}",
                "value": _shown_url(settings) if name == "database_url" else _plain(value),
                "description": field.description,
            }
            for name, field in Settings.model_fields.items()
            for value in [getattr(settings, name)]
        ]
        if as_json:
            _print_json(rows)
            return
        for row in rows:
            out.print(f"{row['name']} = {row['value']}", markup=False)
            out.print(f"    {row['description']}", markup=False)
        return
    from firnline.database import overview
    from firnline.runs import recent

    engine = _database(settings, migrated=False)
    answer = {"version": __version__, "database": _shown_url(settings), **overview(engine)}
    answer["cache"] = str(settings.cache_dir)
    harvests = recent(engine, 5)
    if as_json:
        _print_json({**answer, "harvests": harvests})
        return
    _print_pairs(answer)
    for run in harvests:
        out.print(f"harvest {run['started'][:19]}  {_outcome(run)}", markup=False)


@cache_app.command("list")
def cache_list(as_json: Json = False) -> None:
    """List the materialised subsets, last used first."""
    from firnline.cache.opening import list_subsets

    settings = _settings()
    rows = list_subsets(_database(settings))
    if as_json:
        _print_json(rows)
        return
    table = Table("id", "MB", "created", "last used", "stale", box=None)
    for row in rows:
        table.add_row(
            row["id"],
            f"{row['size'] / 1e6:.1f}",
            row["created"][:19],
            row["last_used"][:19],
            "yes" if row["stale"] else "no",
        )
    out.print(table)


@cache_app.command("show")
def cache_show(id: str) -> None:
    """Print the STAC item of a subset and where its files are, as JSON."""
    from firnline.cache.opening import subset_folder
    from firnline.database import get_item, reading
    from firnline.errors import NotFoundError

    settings = _settings()
    engine = _database(settings)
    folder = subset_folder(engine, settings, id)
    with reading(engine) as connection:
        content = get_item(connection, "subsets", id)
    if content is None:
        raise NotFoundError(f"there is no subset {id[:80]!r}")
    _print_json({"folder": str(folder), "item": json.loads(content)})


def _settings() -> Settings:
    try:
        settings = Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        name = "_".join(map(str, first["loc"])).upper()
        raise InputError(f"setting FIRNLINE_{name}: {first['msg']}") from None
    logs.configure(settings)
    return settings


def _database(settings: Settings, *, migrated: bool = True) -> Engine:
    from firnline.database import connect, migrate

    engine = connect(settings.database)
    if migrated:
        migrate(engine)
    return engine


def _shown_url(settings: Settings) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(settings.database).render_as_string(hide_password=True)
    except (ArgumentError, ValueError):
        return "not a database URL"


def _plain(value: Any) -> Any:
    return (
        list(value)
        if isinstance(value, tuple)
        else str(value)
        if isinstance(value, Path)
        else value
    )


def _outcome(run: dict[str, Any]) -> str:
    """What came of a harvest, in one line."""
    from firnline.runs import deep_read_line

    sources = ", ".join(run["sources"])
    if run["status"] == "successful":
        counts = ("added", "changed", "unchanged", "retired", "revived", "failed")
        told = ", ".join(f"{run[name]} {name}" for name in counts if run[name])
        since = run["not_modified_since"]
        told = f"not modified since {since[:19]}" if since else told
        told = "; ".join(filter(None, [told or "nothing there", deep_read_line(run)]))
        return f"{'deep, ' if run['deep'] else ''}{told}  {sources}"
    return f"{run['status']}  {run['error'] or sources}"


def _area(
    bbox: tuple[float, float, float, float] | None, aoi: Path | None, crs: str | None
) -> dict[str, Any]:
    if (bbox is None) == (aoi is None):
        raise InputError("give the area by one of --bbox W S E N and --aoi FILE")
    if bbox is not None:
        return {"bbox": bbox, "crs": crs or "OGC:CRS84"}
    assert aoi is not None
    return _read_area(aoi, crs)


def _read_area(path: Path, crs: str | None) -> dict[str, Any]:
    """The union of a file's polygons, in the file's own CRS."""
    import geopandas
    import shapely
    from pyogrio.errors import DataSourceError

    from firnline.crs import crs_code, parse_crs

    try:
        frame = geopandas.read_file(path)
    except (DataSourceError, OSError, ValueError) as error:
        raise InputError(f"--aoi {path}: {error}") from None
    if not isinstance(frame, geopandas.GeoDataFrame):
        raise InputError(f"--aoi {path} has no geometry; accepted: GeoJSON, GeoPackage, Shapefile")
    if crs is not None and frame.crs is not None and frame.crs != parse_crs(crs):
        raise InputError(f"--aoi {path} says itself that its CRS is {crs_code(frame.crs)}")
    area = shapely.make_valid(frame.geometry.union_all())
    if area.geom_type not in ("Polygon", "MultiPolygon"):
        raise InputError(f"--aoi {path} holds {area.geom_type}; accepted are polygons")
    if crs is None and frame.crs is None:
        raise InputError(f"--aoi {path} does not say its CRS: give --crs")
    return {
        "geometry": json.loads(shapely.to_geojson(area)),
        "crs": crs or crs_code(frame.crs),
    }


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _print_json(document: Any) -> None:
    sys.stdout.write(json.dumps(document, default=str) + "\n")


def _print_pairs(answer: dict[str, Any]) -> None:
    width = max(map(len, answer))
    for name, value in answer.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        if isinstance(value, dict):
            shown = ", ".join(f"{key} {item}" for key, item in value.items())
        out.print(f"{name:{width}}  {shown}", markup=False)


@contextmanager
def _stop_on_signal() -> Iterator[threading.Event]:
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


@contextmanager
def _percent(quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Progress of a job: a bar on a terminal, else a line whenever the message changes."""
    if not err.is_terminal:
        yield _lines(quiet)
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    with bar:
        task = bar.add_task("starting", total=100)
        yield lambda done, message: bar.update(task, completed=done, description=message)


def _lines(quiet: bool) -> Callable[[int, str], None]:
    last = ""

    def show(done: int, message: str) -> None:
        nonlocal last
        if message != last and not quiet:
            err.print(f"{done:3d} %  {message}", markup=False)
        last = message

    return show


@contextmanager
def _phases(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress of a harvest, (phase, done, total): a bar a phase, else a line a phase."""
    if not err.is_terminal:
        seen: set[str] = set()

        def line(phase: str, done: int, total: int) -> None:
            if phase not in seen and not quiet:
                err.print(f"{phase} ({total:,})" if total else phase, markup=False)
            seen.add(phase)

        yield line
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        transient=True,
    )
    with bar:
        tasks: dict[str, Any] = {}

        def update(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=total or None)
            bar.update(tasks[phase], completed=done, total=total or None)

        yield update


if __name__ == "__main__":
    main()
