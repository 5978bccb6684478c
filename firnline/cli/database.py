"""The database: its schema (``migrate``), and how things are (``status``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from firnline.cli.console import Json, out, print_json, print_pairs
from firnline.cli.installation import load_settings, open_database, shown_url
from firnline.settings import Settings
from firnline.version import __version__


def migrate() -> None:
    """Bring the database's schema to the newest version."""
    settings = load_settings()
    open_database(settings)
    out.print(f"schema is up to date: {shown_url(settings.database)}")


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
