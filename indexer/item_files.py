"""Files of STAC items: stac-geoparquet, and one item a line (NDJSON), by their ending."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import orjson

from firnline.errors import FirnlineError, InputError, SourceCorruptError, SourceMissingError
from firnline.indexer.geoparquet_reader import ItemFile

PARQUET = (".parquet", ".geoparquet")
LINES = (".ndjson", ".jsonl", ".ndjson.gz", ".jsonl.gz")

_LONGEST = 1 << 26  # bytes of a line, ten thousand times an item's
_DAMAGED = (EOFError, gzip.BadGzipFile, zlib.error)


@dataclass(frozen=True)
class Items:
    """What a file holds."""

    each: Callable[[], Iterator[tuple[int, Any]]]
    """Its lines or rows by their number, from 1: an item, or the reason why there is none."""
    place: str
    """What a number counts: ``line`` or ``row``."""
    count: int = 0
    """How many there are, if that is known beforehand; else 0."""
    collections: list[Any] = field(default_factory=list)
    """The STAC collections that it brings along."""


def is_parquet(path: Path) -> bool:
    """Whether the ending says stac-geoparquet, and not NDJSON.

    Raises
    ------
    InputError
        It says neither.
    """
    name = path.name.lower()
    if name.endswith(PARQUET):
        return True
    if name.endswith(LINES):
        return False
    raise InputError(
        f"{path.name}: the ending decides what it is; accepted: {', '.join((*PARQUET, *LINES))}"
    )


def open_items(path: Path) -> Items:
    """What a file of items holds; it is read when its items are taken.

    Raises
    ------
    InputError
        Its ending says nothing.
    SourceMissingError, SourceCorruptError
        It is not there, or not what its ending says.
    """
    parquet = is_parquet(path)
    if not path.is_file():
        raise SourceMissingError(f"{path} does not exist, or is no file")
    if not parquet:
        return Items(lambda: _lines(path), "line")
    file = ItemFile(path)
    return Items(lambda: enumerate(file.items(), 1), "row", file.count, file.collections)


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    opener: Any = gzip.open if path.name.lower().endswith(".gz") else Path.open
    try:
        with opener(path, "rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(_LONGEST + 1), b""), 1):
                if len(line) > _LONGEST:
                    raise SourceCorruptError(
                        f"{path}: line {number} has more than {_LONGEST >> 20} MiB; "
                        "NDJSON has one item a line"
                    )
                text = line.removeprefix(b"\xef\xbb\xbf").strip()
                if text:
                    yield number, _parsed(text)
    except _DAMAGED as error:
        raise SourceCorruptError(f"{path} is not gzip, or cut short: {error}") from None
    except OSError as error:
        raise SourceCorruptError(f"{path} can't be read: {error.strerror}") from None


def _parsed(text: bytes) -> Any:
    try:
        item = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        return f"it is not JSON: {error}"
    return item if isinstance(item, dict) else "it is no JSON object, but an item is one a line"


def write_lines(path: Path, name: str, contents: Iterable[bytes]) -> None:
    """Write items, given as JSON, one a line; compressed if `name` ends in ``.gz``."""
    with path.open("wb") as stream:
        if name.lower().endswith(".gz"):
            # without a time: the same catalog gives the same file
            with gzip.GzipFile("", "wb", fileobj=stream, mtime=0) as packed:
                packed.writelines(content + b"\n" for content in contents)
        else:
            stream.writelines(content + b"\n" for content in contents)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` at once when all is written, or goes away.

    Raises
    ------
    InputError
        There is no such folder, or it can't be written to.
    """
    try:
        number, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise InputError(f"{path} can't be written: {error.strerror}") from None
    os.close(number)
    part = Path(name)
    try:
        yield part
        _settle(part)
        part.replace(path)
    except OSError as error:
        raise FirnlineError(f"{path} can't be written: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _settle(part: Path) -> None:
    """On the disk before it has its name, and readable by whom other new files are."""
    mask = os.umask(0)
    os.umask(mask)
    part.chmod(0o666 & ~mask)
    stream: IO[bytes]
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
