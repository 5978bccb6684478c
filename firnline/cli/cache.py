"""``cache …``: what is stored."""

from __future__ import annotations

import json

from rich.table import Table

from firnline.cli.console import Json, out, print_json
from firnline.cli.installation import load_settings, open_database


def list_stored(as_json: Json = False) -> None:
    """List the materialised subsets, last used first."""
    from firnline.cache.opening import list_subsets

    settings = load_settings()
    rows = list_subsets(open_database(settings))
    if as_json:
        print_json(rows)
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


def show_stored(id: str) -> None:
    """Print the STAC item of a subset and where its files are, as JSON."""
    from firnline.cache.opening import subset_folder
    from firnline.database import get_item, reading
    from firnline.errors import NotFoundError

    settings = load_settings()
    engine = open_database(settings)
    folder = subset_folder(engine, settings, id)
    with reading(engine) as connection:
        content = get_item(connection, "subsets", id)
    if content is None:
        raise NotFoundError(f"there is no subset {id[:80]!r}")
    print_json({"folder": str(folder), "item": json.loads(content)})
