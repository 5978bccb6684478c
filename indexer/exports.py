"""The catalog's items out to a file.

An export is of one state of the catalog, streamed, and the file has its name when all of it is
there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import orjson
from sqlalchemy import Connection, Engine, func, select

from firnline.database import snapshot
from firnline.errors import InputError
from firnline.indexer.changes import STRIDE, Progress, counted
from firnline.indexer.geoparquet import Survey, write_items
from firnline.indexer.item_files import aside, is_parquet, write_lines
from firnline.tables import LIVING, collections, items


@dataclass(frozen=True)
class Exported:
    """What was written."""

    file: str
    collections: Mapping[str, int]
    """Items by collection."""
    bytes: int
    left_out: Mapping[str, int]
    """What stac-geoparquet has no place for: in how many items, by name."""


def export_catalog(
    engine: Engine,
    path: Path,
    *,
    only: Sequence[str] = (),
    beside: bool = False,
    public_url: str = "",
    progress: Progress | None = None,
) -> Exported:
    """Write the items of the catalog to a file, ordered by collection and id.

    Parameters
    ----------
    path
        Its ending decides: ``.parquet`` (stac-geoparquet, with the collections in its metadata)
        or ``.ndjson``.
    only
        Ids of collections; without any, all of them.
    beside
        Also write each collection, as ``NAME.COLLECTION.json`` in the same folder.
    public_url
        The address of this service: addresses of its own begin with it. Without one they are as
        they are stored, and hold in this installation only.

    Raises
    ------
    InputError
        An ending that says nothing, a collection or a folder that there is not.
    FirnlineError
        The file can't be written; what was there before is still there.
    DatabaseError
    """
    progress = progress or (lambda *_: None)
    parquet = is_parquet(path)
    with snapshot(engine) as connection, aside(path) as part:
        source = _Source(connection, only, public_url)
        total = source.count()
        left_out: Counter[str] = Counter()
        if parquet:
            survey = Survey()
            for item in counted(source.items(), total, "read", progress):
                survey.add(item)
            columns = survey.columns(source.collections)
            write_items(part, columns, counted(source.items(), total, "write", progress))
            counts, left_out = survey.counts, survey.left_out
        else:
            counts = Counter()
            write_lines(part, path.name, counted(source.lines(counts), total, "write", progress))
        if beside:
            for id, document in source.collections.items():
                with aside(path.with_name(f"{_stem(path)}.{quote(id, safe='')}.json")) as other:
                    other.write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))
        size = part.stat().st_size
        found = {id: counts[id] for id in source.collections}
    return Exported(str(path), found, size, dict(left_out))


def _stem(path: Path) -> str:
    return path.name.removesuffix(".gz").rpartition(".")[0]


class _Source:
    """What is there to export, in one state of the database."""

    def __init__(self, connection: Connection, only: Sequence[str], public_url: str) -> None:
        self._connection = connection
        self._address = orjson.dumps(f"{public_url.rstrip('/')}/")[:-1] if public_url else b""
        stored = connection.execute(select(collections).order_by(self._sorted(collections.c.id)))
        found = {id: orjson.loads(self._resolved(content)) for id, content in stored}
        unknown = [id for id in only if id not in found]
        if unknown:
            raise InputError(
                f"there is no collection {unknown[0]!r}; there are: {', '.join(found) or 'none'}"
            )
        self.collections = {
            id: {"links": [], **document}
            for id, document in found.items()
            if id in only or not only
        }
        self._conditions = [LIVING, items.c.collection.in_(self.collections)]

    def count(self) -> int:
        chosen = select(func.count()).select_from(items).where(*self._conditions)
        return self._connection.scalar(chosen) or 0

    def items(self) -> Iterator[dict[str, Any]]:
        for _, content in self._contents():
            yield {"links": [], **orjson.loads(content)}

    def lines(self, counts: Counter[str]) -> Iterator[bytes]:
        for id, content in self._contents():
            counts[id] += 1
            yield _with_links(content)

    def _contents(self) -> Iterator[tuple[str, bytes]]:
        chosen = (
            select(items.c.collection, items.c.content)
            .where(*self._conditions)
            .order_by(self._sorted(items.c.collection), self._sorted(items.c.id))
        )
        rows = self._connection.execute(chosen, execution_options={"yield_per": STRIDE})
        for id, content in rows:
            yield id, self._resolved(content)

    def _sorted(self, column: Any) -> Any:
        """The order of the bytes, on both databases: the same catalog gives the same file."""
        postgresql = self._connection.dialect.name == "postgresql"
        return column.collate("C") if postgresql else column

    def _resolved(self, content: bytes) -> bytes:
        if not self._address:
            return content
        return content.replace(b'"firnline:/', self._address)


def _with_links(content: bytes) -> bytes:
    """An item with the member `links`, which is stored only where there are some."""
    if b'"links":[' in content and "links" in orjson.loads(content):
        return content
    return content[:-1] + b',"links":[]}'
