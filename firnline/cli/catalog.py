"""What brings items into the catalog: ``harvest``."""

from __future__ import annotations

from typing import Annotated

import typer

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
    if as_json:
        print_json(report.to_dict() | ({} if deeper is None else {"deep_read": deeper.to_dict()}))
        return
    for line in report.lines() + ([] if deeper is None else deeper.lines()):
        out.print(line, markup=False)
