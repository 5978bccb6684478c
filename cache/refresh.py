"""Whether subsets are what their cubes have, and making them anew where they are not.

A subset is stale once a cube that it was made from has another ETag, or lies elsewhere. It stays
readable until its next generation is published, which fetches what the chunk cache does not have
as the source has it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from shapely.geometry import shape
from sqlalchemy import Connection, Engine, select, update

from firnline.cache import jobs
from firnline.cache.jobs import Job
from firnline.cache.request import Request
from firnline.cube import read_metadata
from firnline.database import get_item, put_items, reading, writing
from firnline.errors import NotFoundError
from firnline.items import SUBSETS, item_row
from firnline.settings import Settings
from firnline.source import Source
from firnline.tables import cubes, subsets


def mark_stale(engine: Engine) -> list[str]:
    """Mark the subsets of which the catalog knows a cube to be another one now; their ids.

    What the catalog knows comes from deep harvests (``firnline harvest --deep``); what it knew
    before a subset was made says nothing of it.
    """
    with writing(engine) as connection:
        known = known_cubes(connection)
        fresh = connection.execute(select(subsets).where(~subsets.c.stale).order_by(subsets.c.id))
        stale = [row.id for row in fresh if has_changed(row, known)]
        for id in stale:
            _mark(connection, id, stale=True)
    return stale


def known_cubes(connection: Connection) -> dict[str, Any]:
    """What deep harvests know of each cube: url, etag and read_at, by id."""
    rows = connection.execute(select(cubes.c.id, cubes.c.url, cubes.c.etag, cubes.c.read_at))
    return {row.id: row for row in rows}


def has_changed(subset: Any, known: Mapping[str, Any]) -> bool:
    """Whether a cube of a subset (a row of the table) was found to be another one since."""
    return any(
        (cube := known.get(source["id"])) is not None
        and cube.read_at > subset.created
        and (cube.url, cube.etag) != (source["href"], source["etag"])
        for source in json.loads(subset.sources)
    )


def refresh(engine: Engine, settings: Settings, id: str) -> Job | None:
    """Ask the sources of a subset whether they have changed; a job for it if they have, else None.

    One request a cube, or a file of a mosaic.

    Raises
    ------
    NotFoundError
        There is no such subset.
    SourceError
    """
    with reading(engine) as connection:
        row = connection.execute(
            select(subsets.c.request, subsets.c.sources).where(subsets.c.id == id)
        ).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no subset {id[:80]!r}")
    roots = {"allowed": settings.allowed_sources, "signed": settings.signed_sources}
    changed = [
        source
        for source in json.loads(row.sources)
        if source["etag"] is None or _is_another(source, roots)
    ]
    with writing(engine) as connection:
        if not changed:
            _mark(connection, id, stale=False)
            return None
        # the others that were made from the same must not answer for this one
        for other in connection.execute(select(subsets.c.id, subsets.c.sources)).all():
            theirs = [(source["href"], source["etag"]) for source in json.loads(other.sources)]
            if any((source["href"], source["etag"]) in theirs for source in changed):
                _mark(connection, other.id, stale=True)
    return jobs.submit(engine, Request.parse(json.loads(row.request), settings), refresh=True)


def _is_another(source: Mapping[str, Any], roots: Mapping[str, Any]) -> bool:
    """Whether a cube, or a file of a mosaic, has another ETag now."""
    href, etag = source["href"], source["etag"]
    if href.endswith(".tif"):
        folder, _, name = href.rpartition("/")
        # a byte of what may be gigabytes
        return bool(Source(folder, **roots).get_start(name, 1).etag != etag)
    return read_metadata(Source(href, **roots), etag) is not None


def _mark(connection: Connection, id: str, *, stale: bool) -> None:
    connection.execute(update(subsets).where(subsets.c.id == id).values(stale=stale))
    content = get_item(connection, SUBSETS, id)
    if content is None:
        return
    item = json.loads(content)
    if item["properties"]["firnline:stale"] != stale:
        item["properties"]["firnline:stale"] = stale
        put_items(connection, [item_row(item, shape(item["geometry"]), source="firnline")])
