"""``key …``: who may use the service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from firnline.cli.console import Json, err, out, print_json
from firnline.cli.installation import load_settings, open_database

if TYPE_CHECKING:
    from firnline.keys import ApiKey


def add_key(
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="read, materialise (start and stop jobs) or admin (stop anyone's); each "
            "includes those before it. Default: materialise."
        ),
    ] = None,
    days: Annotated[float | None, typer.Option(help="Until it expires.")] = None,
    most_jobs: Annotated[
        int | None, typer.Option(help="Jobs of it that may wait or run at a time.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make an API key, and show it this once."""
    from firnline import keys

    engine = open_database(load_settings())
    key, text = keys.add(engine, name, scope or ["materialise"], days=days, most_jobs=most_jobs)
    if as_json:
        print_json({**_shown(key), "key": text})
        return
    out.print(text, markup=False)
    err.print(
        f"It is shown this once: hand it to {key.name}, who sends it as `Authorization: Bearer "
        f"KEY`. `firnline key revoke {key.id}` takes it back.",
        markup=False,
    )


def revoke_key(
    id: Annotated[str, typer.Argument(help="As `key list` shows it.")], as_json: Json = False
) -> None:
    """Take an API key back; servers know it within seconds."""
    from firnline import keys

    key = keys.revoke(open_database(load_settings()), id)
    if as_json:
        print_json(_shown(key))
    else:
        out.print(f"revoked: {key.id} ({key.name})", markup=False)


def list_keys(as_json: Json = False) -> None:
    """List the API keys, without their secrets."""
    from firnline import keys

    rows = [_shown(key) for key in keys.every(open_database(load_settings()))]
    if as_json:
        print_json(rows)
        return
    table = Table("id", "name", "scopes", "jobs", "created", "state", box=None)
    for row in rows:
        most = "any" if row["most_jobs"] is None else str(row["most_jobs"])
        state = row["state"]
        if row["expires"] and state == "valid":
            state = f"until {row['expires'][:10]}"
        scopes = " ".join(row["scopes"])
        table.add_row(row["id"], row["name"], scopes, most, row["created"][:10], state)
    out.print(table)


def _shown(key: ApiKey) -> dict[str, Any]:
    state = "valid" if key.valid else "revoked" if key.revoked else "expired"
    return {
        **{name: value for name, value in vars(key).items() if name not in ("created", "revoked")},
        "created": key.created.isoformat(),
        "expires": key.expires and key.expires.isoformat(),
        "state": state,
    }
