"""What the sources have, as rows: the items of the cubes and of the mosaics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import shapely
from shapely.geometry import shape
from shapely.geometry.base import BaseGeometry
from sqlalchemy import Engine, select

from firnline.database import ItemRow, reading
from firnline.deep import deepened, stored_facts
from firnline.footprint import Outline
from firnline.indexer.catalog import Failure
from firnline.indexer.mosaics import Cube, mosaic_records
from firnline.indexer.presence import Item, Known, Target, asset_target, present
from firnline.items import CUBES, CubeRecord, cube_item, item_row, mosaic_item
from firnline.tables import LIVING, items

Found = Mapping[str, tuple[str, CubeRecord]]
"""The cubes of the catalogs, each with its catalog, by id."""


def composites(found: Found) -> Iterator[Target]:
    """The composites that the catalogs tell of."""
    for id, (source, record) in found.items():
        if record.composite_url is not None:
            yield Target(record.composite_url, f"{id} composite", source, zarr=True)


def cube_rows(engine: Engine, found: Found, known: Known, *, last_year: int) -> Iterator[ItemRow]:
    """The rows of the cubes, with what is known of them and of their composites."""
    with reading(engine) as connection:
        facts = stored_facts(connection)
    for source, record in found.values():
        shallow = cube_item(record, last_year=last_year)
        item = present(deepened(shallow, facts), known)
        assert item is not None  # only mosaics may not be there
        outline: BaseGeometry = record.footprint
        if item["geometry"] is not shallow["geometry"]:
            outline = shape(item["geometry"])
        yield item_row(item, outline, source)


@dataclass(frozen=True)
class Mosaic:
    """A mosaic as the naming scheme has it."""

    item: Item
    outline: Outline
    root: str

    def files(self) -> Iterator[Target]:
        """Its files."""
        return (asset_target(self.item, key, self.root) for key in self.item["assets"])

    def row(self, known: Known) -> ItemRow | None:
        """Its row, with what is known of its files; None if there are none."""
        item = present(self.item, known)
        return None if item is None else item_row(item, self.outline, self.root)


def mosaic_candidates(
    engine: Engine,
    roots: Sequence[str],
    sources: Sequence[str],
    found: Found,
    cubes: Sequence[ItemRow],
) -> tuple[list[Mosaic], list[Failure]]:
    """All mosaics that may be there, and the regions of which no cube is known.

    Parameters
    ----------
    sources
        The catalogs that were read.
    found, cubes
        Their cubes, and the rows of these in the same order.
    """
    outlines = [
        Cube(record.rgi, row.footprint)
        for (_, record), row in zip(found.values(), cubes, strict=True)
    ]
    records, failures = mosaic_records(roots, outlines + _other_cubes(engine, found, sources))
    return [Mosaic(mosaic_item(r), r.footprint, r.root) for r in records], failures


def _other_cubes(engine: Engine, found: Found, sources: Sequence[str]) -> list[Cube]:
    """Cubes of other sources: a mosaic's outline must not depend on which catalog came last."""
    chosen = select(items.c.id, items.c.content, items.c.footprint).where(
        items.c.collection == CUBES, items.c.source.not_in(sources), LIVING
    )
    with reading(engine) as connection:
        stored = connection.execute(chosen).all()
    return [
        Cube(_properties(content).get("itslive:rgi_code"), shapely.from_wkb(footprint))
        for id, content, footprint in stored
        if id not in found
    ]


def _properties(content: bytes) -> dict[str, Any]:
    return dict(orjson.loads(content)["properties"])
