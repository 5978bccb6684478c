"""All commands, and what becomes of their errors."""

from __future__ import annotations

from typing import Annotated, NoReturn

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
from firnline.cli.database import migrate
from firnline.cli.examples import epilog, next_step
from firnline.cli.installation import opened
from firnline.cli.interrupt import leave
from firnline.cli.keys import add_key, list_keys, revoke_key
from firnline.cli.materialise import materialise
from firnline.cli.series import flowlines, series
from firnline.cli.serve import demo, serve, worker
from firnline.cli.status import status
from firnline.errors import FirnlineError, InputError
from firnline.version import __version__

app = typer.Typer(
    name="firnline",
    help="A STAC catalog and a local data cache for NASA's ITS_LIVE glacier velocities.",
    epilog="Begin with `firnline demo` (offline), or `firnline harvest` and `firnline serve`. "
    "`firnline COMMAND --help` has examples.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for command in (demo, harvest, materialise, series, flowlines, serve, worker, status, migrate):
    app.command(epilog=epilog(command.__name__))(command)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"firnline {__version__}")
        raise typer.Exit


@app.callback()
def _before_all(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_say_version,
            is_eager=True,
            help="Say which firnline this is, and stop.",
        ),
    ] = False,
) -> None:
    pass


catalog_app = typer.Typer(help="The catalog as a file.", no_args_is_help=True)
catalog_app.command("export", epilog=epilog("catalog export"))(export_items)
catalog_app.command("import", epilog=epilog("catalog import"))(import_items)
app.add_typer(catalog_app, name="catalog")

cache_app = typer.Typer(help="The materialised subsets: what is stored.", no_args_is_help=True)
cache_app.command("list", epilog=epilog("cache list"))(list_stored)
cache_app.command("show", epilog=epilog("cache show"))(show_stored)
cache_app.command("verify", epilog=epilog("cache verify"))(verify)
cache_app.command("evict", epilog=epilog("cache evict"))(evict)
cache_app.command("pin", epilog=epilog("cache pin"))(pin)
cache_app.command("unpin", epilog=epilog("cache unpin"))(unpin)
cache_app.command("refresh", epilog=epilog("cache refresh"))(refresh_stored)
app.add_typer(cache_app, name="cache")

key_app = typer.Typer(help="API keys: who may use the service.", no_args_is_help=True)
key_app.command("add", epilog=epilog("key add"))(add_key)
key_app.command("revoke", epilog=epilog("key revoke"))(revoke_key)
key_app.command("list", epilog=epilog("key list"))(list_keys)
app.add_typer(key_app, name="key")


def main() -> NoReturn:
    """Run the command line; errors that are meant for people are one line and an exit code."""
    try:
        with opened:
            app(standalone_mode=True)
    except SystemExit as end:
        leave(int(end.code or 0))
    except FirnlineError as error:
        err.print(f"error: {error}", markup=False)
        if (step := next_step(error)) is not None:
            err.print(f"       {step}", markup=False)
        leave(2 if isinstance(error, InputError) else 1)
    leave(0)
