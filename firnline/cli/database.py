"""The database: its schema and its place (``migrate``), and how things are (``status``)."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from firnline.cli.console import Json, err, out, phases, print_json, print_pairs
from firnline.cli.installation import load_settings, open_database, open_url, shown_url
from firnline.errors import InputError
from firnline.settings import Settings
from firnline.version import __version__

if TYPE_CHECKING:
    from sqlalchemy import Engine


def migrate(
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="URL",
            help="Also move everything to another database, which is empty: "
            "sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring the database's schema to the newest version; --to moves everything elsewhere."""
    settings = load_settings()
    engine = open_database(settings)
    here = shown_url(settings.database)
    if to is not None:
        _move(engine, here, to, as_json)
    elif as_json:
        print_json({"database": here})
    else:
        out.print(f"schema is up to date: {here}", markup=False)


def _move(engine: Engine, here: str, to: str, as_json: bool) -> None:
    from firnline.transfer import transfer

    try:
        target = open_url(to)
    except InputError as error:
        raise InputError(f"--to: {str(error).replace('FIRNLINE_DATABASE_URL', 'it')}") from None
    with phases(as_json) as progress:
        moved = transfer(engine, target, progress)
    there = shown_url(to)
    differ = [each.table for each in moved if not each.same]
    if as_json:
        tables = [asdict(each) | {"same": each.same} for each in moved]
        print_json({"from": here, "to": there, "same": not differ, "tables": tables})
    else:
        table = Table("table", "rows", "arrived", "digest", "", box=None)
        for each in moved:
            table.add_row(
                each.table,
                f"{each.sent.rows:,}",
                f"{each.arrived.rows:,}",
                each.sent.digest,
                "same" if each.same else "DIFFERS",
            )
        out.print(table)
    if differ:
        err.print(
            f"error: {', '.join(differ)} did not arrive as sent; {there} was left empty",
            markup=False,
        )
        raise typer.Exit(1)
    if not as_json:
        out.print(
            f"everything of {here} is in {there}; set FIRNLINE_DATABASE_URL to use it",
            markup=False,
        )


def status(
    settings_only: Annotated[
        bool, typer.Option("--settings", help="List every setting with its value.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Say how things are: database, catalog, jobs, store."""
    settings = load_settings()
    if settings_only:
        rows = [
            {
                "name": f"FIRNLINE_{name.upper()}",
                "value": shown_url(settings.database) if name == "database_url" else _plain(value),
                "description": field.description,
            }
            for name, field in Settings.model_fields.items()
            for value in [getattr(settings, name)]
        ]
        if as_json:
            print_json(rows)
            return
        for row in rows:
            out.print(f"{row['name']} = {row['value']}", markup=False)
            out.print(f"    {row['description']}", markup=False)
        return
    from firnline.database import overview
    from firnline.runs import recent

    engine = open_database(settings, migrated=False)
    answer = {"version": __version__, "database": shown_url(settings.database), **overview(engine)}
    answer["cache"] = str(settings.cache_dir)
    harvests = recent(engine, 5)
    if as_json:
        print_json({**answer, "harvests": harvests})
        return
    print_pairs(answer)
    for run in harvests:
        out.print(f"harvest {run['started'][:19]}  {_outcome(run)}", markup=False)


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
