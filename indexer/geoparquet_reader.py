"""STAC items of a stac-geoparquet file, whoever wrote it.

The specification leaves much to the writer: instants may be of any unit, a collection may be named
in the metadata only, what is nested may be text that is JSON. What ``firnline.indexer.geoparquet``
noted in the metadata makes the items of its own files the same again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from pyproj import CRS
from pyproj.exceptions import CRSError
from shapely.geometry import mapping

from firnline.crs import LONLAT
from firnline.errors import SourceCorruptError
from firnline.indexer.geoparquet import CORNERS, CORNERS_3D, MEMBERS, OUTLINE, UNREADABLE
from firnline.indexer.json_arrow import Convert, Notes, decoder

_BATCH = 500  # rows at a time


class ItemFile:
    """A stac-geoparquet file, of anyone's.

    Raises
    ------
    SourceCorruptError
        It is not one.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowInvalid, OSError) as error:
            reason = str(error).splitlines()[0]
            raise SourceCorruptError(f"{path} can't be read as Parquet: {reason}") from None
        self._path, self._schema = path, self._file.schema_arrow
        missing = [name for name in ("id", "geometry") if name not in self._schema.names]
        if missing:
            raise SourceCorruptError(
                f"{path} is not stac-geoparquet: it has no column {' and no column '.join(missing)}"
            )
        self._check_crs()
        own = self._metadata("firnline")
        try:
            self._notes = Notes.from_json(own.get("notes", {}))
            self._groups = {
                name: Notes.from_json(notes) for name, notes in own.get("collections", {}).items()
            }
        except (AttributeError, TypeError, ValueError):
            raise SourceCorruptError(f"{path}: its metadata `firnline` is damaged") from None

    @property
    def count(self) -> int:
        """Number of rows."""
        return int(self._file.metadata.num_rows)

    @property
    def collections(self) -> list[Any]:
        """The documents of the file's metadata that should be STAC collections."""
        told = self._metadata("stac-geoparquet")
        several = told.get("collections")
        found = list(several.values()) if isinstance(several, dict) else []
        return found + ([told["collection"]] if "collection" in told else [])  # before version 1.1

    def items(self) -> Iterator[dict[str, Any] | str]:
        """Each row as an item, or why it is none."""
        (single, *more) = self.collections or [None]
        default = single.get("id") if isinstance(single, dict) and not more else None
        readers: dict[str | None, _RowReader] = {}
        for batch in self._file.iter_batches(batch_size=_BATCH):
            for row in _readable(batch).to_pylist():
                collection = row.get("collection") or default
                if collection not in readers:
                    readers[collection] = self._reader(collection)
                try:
                    yield readers[collection].item({**row, "collection": collection})
                except UNREADABLE as error:
                    yield f"it can't be read: {error}"

    def _reader(self, collection: Any) -> _RowReader:
        try:
            return _RowReader(self._schema, self._notes | self._groups.get(collection, Notes()))
        except ValueError as error:
            raise SourceCorruptError(f"{self._path}: {error}, which is not JSON") from None

    def _metadata(self, key: str) -> dict[str, Any]:
        written = (self._schema.metadata or {}).get(key.encode())
        try:
            document = orjson.loads(written) if written else {}
        except orjson.JSONDecodeError:
            raise SourceCorruptError(f"{self._path}: its metadata `{key}` is not JSON") from None
        return document if isinstance(document, dict) else {}

    def _check_crs(self) -> None:
        columns = self._metadata("geo").get("columns")
        crs = columns.get("geometry", {}).get("crs") if isinstance(columns, dict) else None
        if crs is None:
            return
        try:
            found = CRS.from_user_input(crs)
        except CRSError:
            raise SourceCorruptError(f"{self._path}: the CRS of its geometry is no CRS") from None
        if not found.equals(LONLAT, ignore_axis_order=True):
            raise SourceCorruptError(
                f"{self._path} has its geometry in {found.name}; STAC has longitude and latitude"
            )


class _RowReader:
    """Makes items of the rows of a collection."""

    def __init__(self, schema: pa.Schema, notes: Notes) -> None:
        self._converts: dict[str, Convert] = {}
        self._null: set[str] = set()
        for column in schema:
            name = column.name
            if name == "geometry" or (name == OUTLINE and _is_binary(column.type)):
                self._converts[name] = _geojson
            elif name == "bbox":
                self._converts[name] = _box
            else:
                self._converts[name] = decoder(_plain(column.type), (name,), notes, _geojson)
            if (name,) in notes.null:
                self._null.add(name)

    def item(self, row: dict[str, Any]) -> dict[str, Any]:
        """The item of a row; its members are checked by who takes it."""
        members: dict[str, Any] = {"type": "Feature", "links": [], "assets": {}}
        properties: dict[str, Any] = {"datetime": None}
        for name, value in row.items():
            into = members if name in MEMBERS else properties
            if value is not None:
                convert = self._converts.get(name)
                into[name] = value if convert is None else convert(value)
            elif name in self._null:
                into[name] = None
        for name in ("assets", "links"):  # some writers keep what is nested as JSON
            if isinstance(members[name], str):
                members[name] = orjson.loads(members[name])
        return {**members, "properties": properties}


def _readable(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Without instants of nanoseconds, which Python has none of."""
    for place, column in enumerate(batch.schema):
        if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
            coarse = pa.timestamp("us", column.type.tz)
            values = batch.column(place).cast(coarse, safe=False)
            batch = batch.set_column(place, column.with_type(coarse), values)
    return batch


def _plain(type_: pa.DataType) -> pa.DataType:
    return type_.storage_type if isinstance(type_, pa.BaseExtensionType) else type_


def _is_binary(type_: pa.DataType) -> bool:
    plain = _plain(type_)
    return bool(pa.types.is_binary(plain) or pa.types.is_large_binary(plain))


def _geojson(wkb: bytes) -> dict[str, Any]:
    made: dict[str, Any] = orjson.loads(orjson.dumps(mapping(shapely.from_wkb(wkb))))
    return made


def _box(corners: Any) -> list[float]:
    if not isinstance(corners, dict):
        return list(corners)
    names = CORNERS_3D if corners.get("zmin") is not None else CORNERS
    return [corners[name] for name in names]
