"""STAC items as stac-geoparquet.

By version 1.1.0 of https://github.com/radiantearth/stac-geoparquet-spec: a row an item, its
properties as columns, the geometry as WKB in longitude and latitude, the bounding box as a struct,
the common instants as timestamps, the collections in the file's metadata. What the columns leave
open (:mod:`firnline.indexer.json_arrow`) stands in the metadata as well, under the key
``firnline``, out of the way of other readers; :mod:`firnline.indexer.geoparquet_reader` goes by it.

Not kept are properties that have the name of a member of the item itself, which the specification
excludes, and members of the item that STAC does not know.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from shapely.geometry import shape

from firnline.crs import LONLAT
from firnline.indexer.json_arrow import EMPTY, Notes, Place, arrow_type, encoder, group_notes

_PLAIN = ("stac_version", "stac_extensions", "links", "assets")
MEMBERS = frozenset(("type", "id", "collection", "geometry", "bbox", *_PLAIN))
"""Members of an item that are columns by themselves, or none; no property can have such a name."""
OUTLINE = "proj:geometry"
"""GeoJSON in another CRS, of an item or of an asset: WKB in the columns."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")
CORNERS_3D = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
INSTANTS = (
    "datetime", "start_datetime", "end_datetime", "created", "updated", "expires", "published",
    "unpublished",
)  # fmt: skip
"""Properties that are instants (STAC's common metadata, and its timestamps extension)."""

_ROWS = 5_000  # of a row group
_BATCH = 500  # rows that are converted at a time
_TIME = pa.timestamp("us", tz="UTC")
_TEXTS = pa.list_(pa.string())
_LINKS = pa.list_(pa.struct([(name, pa.string()) for name in ("href", "rel", "type", "title")]))
UNREADABLE = (AttributeError, LookupError, TypeError, ValueError, shapely.errors.ShapelyError)
"""What a conversion raises of something that is not what it should be."""

Item = Mapping[str, Any]


class Survey:
    """What the items have that go into a file: takes each of them, then tells the columns."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Items by collection."""
        self.left_out: Counter[str] = Counter()
        """Members and properties that can't be kept: how many items have them, by name."""
        self._places: dict[str, Place] = {}
        self._no_instants: set[str] = set()
        self._kinds: set[str] = set()
        self._bounds = [math.inf, math.inf, -math.inf, -math.inf]
        self._corners: tuple[str, ...] = CORNERS

    def add(self, item: Item) -> None:
        """Take an item into account."""
        collection = item["collection"]
        self.counts[collection] += 1
        if collection not in self._places:
            self._places[collection] = Place()
        row = _row(item, self.left_out)
        self._places[collection].look(row)
        for name in INSTANTS:
            value = row.get(name)
            if value is not None and parse_instant(value) is None:
                self._no_instants.add(name)
        box = item["bbox"]
        if len(box) == 6:
            self._corners = CORNERS_3D
        west, south, east, north = box[0], box[1], box[len(box) // 2], box[len(box) // 2 + 1]
        if west > east:
            west, east = -180.0, 180.0
        low, high = map(min, self._bounds, (west, south)), map(max, self._bounds[2:], (east, north))
        self._bounds = [*low, *high]
        self._kinds.add(_kind(item["geometry"]))

    def columns(self, collections: Mapping[str, Any]) -> Columns:
        """The columns for what was seen; `collections` are the STAC collections, by id."""
        joined = Place()
        for place in self._places.values():
            joined.join(place)
        notes = Notes()
        types: dict[str, pa.DataType] = {
            "id": pa.string(),
            "collection": pa.string(),
            "stac_version": pa.string(),
            "stac_extensions": _TEXTS,
            "geometry": pa.binary(),
            "bbox": pa.struct([(corner, pa.float64()) for corner in self._corners]),
            "datetime": _TIME,
            "links": _LINKS,
            "assets": EMPTY,
        }
        for name, place in sorted(joined.members.items()):
            if name in INSTANTS and name not in self._no_instants and not place.mixed(name):
                types[name] = _TIME
            else:
                found = arrow_type(place, (name,), notes)
                if name not in _PLAIN or not _is_empty(found):
                    types[name] = found
        groups = {}
        for collection, place in self._places.items():
            groups[collection] = Notes()
            group_notes(place, joined, (), groups[collection])
            groups[collection].null.discard(("datetime",))  # always is, as STAC asks
        own = {
            "version": 1,
            "notes": notes.to_json(),
            "collections": {name: group.to_json() for name, group in groups.items()},
        }
        metadata = {
            "geo": self._geo(),
            "stac-geoparquet": {"version": "1.1.0", "collections": dict(collections)},
            "firnline": own,
        }
        written = {name: orjson.dumps(document) for name, document in metadata.items()}
        return Columns(pa.schema(types.items(), metadata=written), notes)

    def _geo(self) -> dict[str, Any]:
        """The metadata of GeoParquet 1.1.0."""
        corners = {corner: ["bbox", corner] for corner in self._corners}
        geometry: dict[str, Any] = {
            "encoding": "WKB",
            "geometry_types": sorted(self._kinds),
            "crs": LONLAT.to_json_dict(),
            "covering": {"bbox": corners},
        }
        if self._kinds:
            geometry["bbox"] = self._bounds
        columns = {"geometry": geometry}
        if any(OUTLINE in place.members for place in self._places.values()):
            # each row may have a CRS of its own: null says that it is not known
            columns[OUTLINE] = {"encoding": "WKB", "geometry_types": [], "crs": None}
        return {"version": "1.1.0", "primary_column": "geometry", "columns": columns}


class Columns:
    """The columns of a file, and how items get into them."""

    def __init__(self, schema: pa.Schema, notes: Notes) -> None:
        self.schema = schema
        self._encoders = {
            column.name: convert
            for column in schema
            if (convert := encoder(column.type, (column.name,), notes)) is not None
        }
        self._json = {column for (column, *rest) in notes.json if not rest}

    def batch(self, items: Sequence[Item]) -> pa.RecordBatch:
        """Items as rows; all of them have been surveyed."""
        rows = [_row(item) for item in items]
        return pa.record_batch(
            [self._column(column, rows, items) for column in self.schema], schema=self.schema
        )

    def _column(self, column: pa.Field, rows: Sequence[Item], items: Sequence[Item]) -> pa.Array:
        name = column.name
        values: list[Any]
        if name in ("id", "collection"):
            values = [item[name] for item in items]
        elif name == "geometry":
            values = [_wkb(item["geometry"]) for item in items]
        elif name == "bbox":
            values = [_cornered(item["bbox"]) for item in items]
        elif pa.types.is_timestamp(column.type):
            values = [None if (v := row.get(name)) is None else parse_instant(v) for row in rows]
        elif (convert := self._encoders.get(name)) is not None:
            null = name in self._json
            values = [
                convert(row[name]) if name in row and (null or row[name] is not None) else None
                for row in rows
            ]
        else:
            values = [row.get(name) for row in rows]
        return pa.array(values, type=column.type)


def write_items(path: Path, columns: Columns, items: Iterator[Item]) -> None:
    """Write a file of those items that were surveyed for `columns`, a few thousand at a time."""
    with pq.ParquetWriter(path, columns.schema, compression="zstd") as writer:
        batches: list[pa.RecordBatch] = []
        rows: list[Item] = []
        for item in items:
            rows.append(item)
            if len(rows) == _BATCH:
                batches.append(columns.batch(rows))
                rows = []
                if len(batches) * _BATCH >= _ROWS:
                    writer.write_table(pa.Table.from_batches(batches))
                    batches = []
        batches.append(columns.batch(rows))
        writer.write_table(pa.Table.from_batches(batches))


def _row(item: Item, left_out: Counter[str] | None = None) -> dict[str, Any]:
    """The members of an item that become columns by themselves, with its properties."""
    row = {name: item[name] for name in _PLAIN if name in item}
    if any(OUTLINE in asset for asset in row["assets"].values()):
        row["assets"] = {key: _with_wkb(asset, left_out) for key, asset in row["assets"].items()}
    for name, value in _with_wkb(item["properties"], left_out).items():
        if name not in MEMBERS:
            row[name] = value
        elif left_out is not None:
            left_out[f"properties.{name}"] += 1
    if left_out is not None:
        left_out.update(item.keys() - MEMBERS - {"properties"})
    return row


def _with_wkb(members: Item, left_out: Counter[str] | None) -> Item:
    if OUTLINE not in members:
        return members
    try:
        return {**members, OUTLINE: _wkb(members[OUTLINE])}
    except UNREADABLE:
        if left_out is not None:
            left_out[OUTLINE] += 1
        return {name: value for name, value in members.items() if name != OUTLINE}


def _wkb(geometry: Any) -> bytes:
    return bytes(shapely.to_wkb(shape(geometry), flavor="iso"))


def _kind(geometry: Any) -> str:
    """The type as GeoParquet names it: with a Z where there are heights."""
    return f"{geometry['type']} Z" if _is_high(geometry) else str(geometry["type"])


def _is_high(geometry: Any) -> bool:
    if "geometries" in geometry:
        return any(map(_is_high, geometry["geometries"]))
    position = geometry["coordinates"]
    while position and isinstance(position[0], list | tuple):
        position = position[0]
    return len(position) > 2


def _cornered(box: Sequence[float]) -> dict[str, float]:
    names = CORNERS if len(box) == 4 else CORNERS_3D
    return dict(zip(names, map(float, box), strict=True))


def parse_instant(text: Any) -> datetime | None:
    """The instant that a text is, in UTC, if it is one with a time zone."""
    try:
        value = datetime.fromisoformat(text)
        return None if value.tzinfo is None else value.astimezone(UTC)
    except (OverflowError, TypeError, ValueError):
        return None


def _is_empty(type_: pa.DataType) -> bool:
    """Whether nothing was seen but empty lists and objects, which have a type here by default."""
    inner = type_.value_type if pa.types.is_list(type_) else type_
    return bool(pa.types.is_null(inner)) or type_ == EMPTY
