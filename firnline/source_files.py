"""What is known of single files of the sources, by URL: whether they are there, and a COG's grid.

A harvest makes every item again; what was once asked of a server is kept here, apart from the
items, so that a harvest that asks nothing makes the same items.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime

from sqlalchemy import Connection, insert, select

from firnline.tables import source_files

_BATCH = 500  # URLs in one statement


@dataclass(frozen=True)
class Grid:
    """The grid of a raster with north up."""

    shape: tuple[int, int]
    """Rows, columns."""
    transform: tuple[float, float, float, float, float, float]
    """From (column, row) of pixel corners to x and y, as ``proj:transform``."""

    @property
    def bbox(self) -> list[float]:
        """left, bottom, right, top."""
        step_x, _, left, _, step_y, top = self.transform
        return [left, top + step_y * self.shape[0], left + step_x * self.shape[1], top]


@dataclass(frozen=True)
class SourceFile:
    """A file that was asked for; `grid` is that of a COG whose header was read."""

    url: str
    found: bool
    asked: datetime
    etag: str | None = None
    size: int | None = None
    grid: Grid | None = None


def known_files(connection: Connection) -> dict[str, SourceFile]:
    """All that was asked for, by URL."""
    return {
        row.url: SourceFile(
            url=row.url,
            found=row.found,
            asked=row.asked,
            etag=row.etag,
            size=row.size,
            grid=None if row.grid is None else _grid(row.grid),
        )
        for row in connection.execute(select(source_files))
    }


def put_files(connection: Connection, found: Sequence[SourceFile]) -> None:
    """Insert or replace."""
    for first in range(0, len(found), _BATCH):
        batch = found[first : first + _BATCH]
        urls = [file.url for file in batch]
        connection.execute(source_files.delete().where(source_files.c.url.in_(urls)))
        rows = [
            {
                "url": file.url,
                "found": file.found,
                "asked": file.asked,
                "etag": file.etag,
                "size": file.size,
                "grid": None if file.grid is None else json.dumps(asdict(file.grid)),
            }
            for file in batch
        ]
        connection.execute(insert(source_files), rows)


def _grid(text: str) -> Grid:
    values = json.loads(text)
    return Grid(tuple(values["shape"]), tuple(values["transform"]))
