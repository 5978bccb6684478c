"""All commands, and what becomes of their errors."""

from __future__ import annotations

import sys
from typing import NoReturn

import typer

from firnline.cli.cache import (
    evict,
    list_stored,
    pin,
    refresh_stored,
    show_stored,
    unpin,
    verify,
)
from firnline.cli.catalog import export_items, harvest, import_items
from firnline.cli.console import err
from firnline.cli.database import migrate, status
from firnline.cli.installation import opened
from firnline.cli.keys import add_key, list_keys, revoke_key
from firnline.cli.materialise import materialise
from firnline.cli.series import flowlines, series
from firnline.cli.serve import demo, serve, worker
from firnline.errors import FirnlineError, InputError

app = typer.Typer(
    name="firnline",
    help="A STAC catalog and a local data cache for NASA's ITS_LIVE glacier velocities.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (migrate, harvest, materialise, series, flowlines, serve, worker, demo, status):
    app.command()(command)

catalog_app = typer.Typer(help="The catalog as a file.", no_args_is_help=True)
catalog_app.command("export")(export_items)
catalog_app.command("import")(import_items)
app.add_typer(catalog_app, name="catalog")

cache_app = typer.Typer(help="The materialised subsets: what is stored.", no_args_is_help=True)
cache_app.command("list")(list_stored)
cache_app.command("show")(show_stored)
cache_app.command()(verify)
cache_app.command()(evict)
cache_app.command()(pin)
cache_app.command()(unpin)
cache_app.command("refresh")(refresh_stored)
app.add_typer(cache_app, name="cache")

key_app = typer.Typer(help="API keys: who may use the service.", no_args_is_help=True)
key_app.command("add")(add_key)
key_app.command("revoke")(revoke_key)
key_app.command("list")(list_keys)
app.add_typer(key_app, name="key")


def main() -> NoReturn:
    """Run the command line; errors that are meant for people are one line and an exit code."""
    try:
        with opened:
            app(standalone_mode=True)
    except InputError as error:
        err.print(f"error: {error}", markup=False)
        sys.exit(2)
    except FirnlineError as error:
        err.print(f"error: {error}", markup=False)
        sys.exit(1)
    sys.exit(0)
