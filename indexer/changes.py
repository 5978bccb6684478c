"""What a harvest changes: rows compared with those that are stored, and the difference written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import orjson
import shapely
from sqlalchemy import Connection, select

from firnline.collections import COLLECTIONS, Extent, collection
from firnline.database import ItemRow, put_collections, put_items, retire_items
from firnline.errors import CatalogError
from firnline.indexer.report import Counts
from firnline.items import encode
from firnline.tables import LIVING, collections, items

LARGEST_LOSS = 0.2
"""Share of its cubes that a catalog may lose from one harvest to the next."""
STRIDE = 500
"""Rows between two reports of progress."""

Progress = Callable[[str, int, int], None]
T = TypeVar("T")

_SUMMARISED = ("proj:code", "version", "rgi", "temporal_coverage_type", "itslive:region")


@dataclass(frozen=True)
class Stored:
    """A row as it is, living or retired."""

    digest: str
    source: str
    retired: bool


@dataclass(frozen=True)
class Change:
    """What to write of one collection."""

    collection: str
    put: list[ItemRow]
    retired: list[str]
    counts: Counts
    losses: Mapping[str, tuple[int, int]]
    """By source: how many of its items are gone, of how many."""


def stored_rows(connection: Connection, name: str) -> dict[str, Stored]:
    """All rows of a collection, by id."""
    chosen = select(items.c.id, items.c.digest, items.c.source, items.c.retired).where(
        items.c.collection == name
    )
    return {
        id: Stored(digest, source, retired is not None)
        for id, digest, source, retired in connection.execute(chosen)
    }


def compare(
    stored: Mapping[str, Stored], name: str, rows: list[ItemRow], owners: Sequence[str]
) -> Change:
    """What to write so that the collection `name` has these rows.

    Parameters
    ----------
    owners
        Sources whose rows are retired where they are not among the new ones.
    """
    put = []
    added = changed = revived = 0
    for row in rows:
        before = stored.get(row.id)
        if before is None:
            added += 1
        elif before.retired:
            revived += 1
        elif before.digest != row.digest:
            changed += 1
        elif before.source == row.source:
            continue
        put.append(row)
    now = {row.id for row in rows}
    living = {id: before.source for id, before in stored.items() if not before.retired}
    retired = [id for id, source in living.items() if source in owners and id not in now]
    return Change(
        collection=name,
        put=put,
        retired=retired,
        counts=Counts(added, changed, len(rows) - added - changed - revived, len(retired), revived),
        losses={
            owner: (
                sum(living[id] == owner for id in retired),
                sum(source == owner for source in living.values()),
            )
            for owner in owners
        },
    )


def refuse_losses(change: Change, sources: Sequence[str]) -> None:
    """Raise :class:`CatalogError` if a source lost more than :data:`LARGEST_LOSS` of its cubes."""
    for source in sources:
        lost, before = change.losses[source]
        if lost > LARGEST_LOSS * before:
            raise CatalogError(
                f"{source}: the catalog lost {lost} of its {before} cubes, more than "
                f"{LARGEST_LOSS:.0%}; refused, since it looks like a damaged one "
                "(`firnline harvest --force` accepts it)"
            )


def write(connection: Connection, changes: Sequence[Change], progress: Progress) -> None:
    """Put and retire rows, and bring their collections to what they are then."""
    known = set(connection.scalars(select(collections.c.id)))
    # Items refer to their collection, so it comes first; its extent follows from the items.
    put_collections(
        connection, [(id, encode(collection(id))) for id in COLLECTIONS if id not in known]
    )
    total = sum(len(change.put) for change in changes)
    done = 0
    for change in changes:
        for first in range(0, len(change.put), STRIDE):
            progress("store", done, total)
            batch = change.put[first : first + STRIDE]
            put_items(connection, batch)
            done += len(batch)
        retire_items(connection, change.collection, change.retired)
        put_extent(connection, change.collection)
    progress("store", total, total)


def counted(rows: Iterable[T], total: int, phase: str, progress: Progress) -> Iterator[T]:
    """The rows, and now and then how many went by; `total` is 0 where it is not known."""
    for done, row in enumerate(rows):
        if done % STRIDE == 0:
            progress(phase, done, total)
        yield row
    progress(phase, total, total)


def put_extent(connection: Connection, name: str) -> None:
    """Bring a collection's extent and summaries to what its items are."""
    put_collections(connection, [(name, encode(collection(name, _extent(connection, name))))])


def _extent(connection: Connection, name: str) -> Extent | None:
    chosen = select(
        items.c.footprint, items.c.content, items.c.start_datetime, items.c.end_datetime
    ).where(items.c.collection == name, LIVING)
    boxes, times = [], []
    values: dict[str, set[str]] = {key: set() for key in _SUMMARISED}
    rows = connection.execute(chosen, execution_options={"yield_per": STRIDE})
    for batch in rows.partitions():
        boxes.append(shapely.total_bounds(shapely.from_wkb([row[0] for row in batch])))
        times += [min(row[2] for row in batch), max(row[3] for row in batch)]
        for row in batch:
            properties = orjson.loads(row[1])["properties"]
            for key in _SUMMARISED:
                if properties.get(key) is not None:
                    values[key].add(properties[key])
    if not boxes:
        return None
    west, south = np.min(boxes, axis=0)[:2]
    east, north = np.max(boxes, axis=0)[2:]
    return Extent(
        bbox=(float(west), float(south), float(east), float(north)),
        start=min(times),
        end=max(times),
        summaries={key: sorted(found) for key, found in values.items()},
    )
