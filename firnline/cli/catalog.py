"""The catalog: ``harvest``, ``catalog export`` and ``catalog import``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from firnline.child import step_back
from firnline.cli.console import Json, out, phases, print_json
from firnline.cli.installation import load_settings, open_database


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
            help="Also look at the files themselves: which exist, the grids of the mosaics, and "
            "each cube's own metadata and image pairs."
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
    step_back()
    from firnline.cache.refresh import mark_stale
    from firnline.indexer.cubes import deepen
    from firnline.indexer.harvest import harvest as run

    settings = load_settings()
    engine = open_database(settings)
    with phases(as_json) as progress:
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
    stale = [] if deeper is None else mark_stale(engine)
    if as_json:
        more = {} if deeper is None else {"deep_read": deeper.to_dict(), "stale_subsets": stale}
        print_json(report.to_dict() | more)
        return
    for line in report.lines() + ([] if deeper is None else deeper.lines()):
        out.print(line, markup=False)
    for id in stale:
        out.print(f"{id} is stale now: `firnline cache refresh {id}` makes it anew", markup=False)


def export_items(
    file: Annotated[
        Path,
        typer.Argument(help="Where to; .parquet is stac-geoparquet, .ndjson (.gz) an item a line."),
    ],
    collection_ids: Annotated[
        list[str] | None,
        typer.Option("--collection-id", metavar="ID", help="Only this collection; several times."),
    ] = None,
    collections: Annotated[
        bool,
        typer.Option(
            "--collections",
            help="Also write each collection as a JSON file beside; .parquet has them inside.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Write the catalog's items to a file, for other tools or another catalog."""
    from firnline.indexer.exports import export_catalog

    settings = load_settings()
    engine = open_database(settings)
    with phases(as_json) as progress:
        done = export_catalog(
            engine,
            file,
            only=collection_ids or (),
            beside=collections,
            public_url=settings.public_url,
            progress=progress,
        )
    if as_json:
        print_json(asdict(done))
        return
    for name, count in done.collections.items():
        out.print(f"{name}: {count:,} items", markup=False)
    for name, count in done.left_out.items():
        out.print(f"left out of {count:,} items: {name} (NDJSON keeps it)", markup=False)
    out.print(f"{done.file}: {done.bytes / 1e6:.1f} MB", markup=False)


def import_items(
    file: Annotated[
        Path, typer.Argument(help="STAC items: stac-geoparquet (.parquet) or NDJSON (.ndjson).")
    ],
    collection: Annotated[
        list[Path] | None,
        typer.Option("--collection", metavar="FILE", help="A STAC collection; several times."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Put STAC items of a file into the catalog."""
    from firnline.indexer.imports import import_catalog

    settings = load_settings()
    engine = open_database(settings)
    with phases(as_json) as progress:
        done = import_catalog(
            engine,
            file,
            collection_files=collection or (),
            public_url=settings.public_url,
            progress=progress,
        )
    if as_json:
        print_json(done.to_dict())
    else:
        for line in done.lines():
            out.print(line, markup=False)
    if done.failures and not done.counts:
        raise typer.Exit(1)
