"""``migrate``: the database's schema, and its place."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from firnline.cli.console import Json, err, out, phases, print_json
from firnline.cli.installation import load_settings, open_database, open_url, shown_url
from firnline.errors import InputError

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
