"""Folders and files in a bucket of S3, by those methods of a path that the store of subsets uses.

The credentials, the region and, for another S3 than Amazon's, the endpoint come from the usual
``AWS_…`` variables, or from the machine's role. They are in no message, no log and no pickle:
another process finds its own.

Whatever can't be reached raises: a name that is not there is `FileNotFoundError` as on a disk, an
outage never looks like one.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store
from zarr.storage import ObjectStore

from firnline.errors import StoreError, StoreUnreachableError

if TYPE_CHECKING:
    from typing_extensions import Buffer
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer as ZarrBuffer
    from zarr.core.buffer import BufferPrototype

_ONE_REQUEST = 8 << 20  # bytes of a file that is put at one go; more go in parts of so many
_PARTS = 4  # of a file under way at once
_READ = 4 << 20
_PATIENCE = timedelta(seconds=60)  # of requests that are made again
_STATUS = re.compile(r"status code: (\d{3}[\w -]*)")
_METADATA = ("zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata")


@dataclass(frozen=True)
class Stat:
    """What a bucket says of a file."""

    size: int
    etag: str
    modified: datetime


@dataclass(frozen=True)
class BucketPath:
    """A folder or file of a bucket: small, and the same on any machine.

    ``key`` has no slash at its ends.
    """

    bucket: str
    key: str = ""

    @classmethod
    def parse(cls, url: str) -> BucketPath:
        """The folder of an ``s3://bucket/prefix`` URL."""
        parts = urlsplit(url)
        return cls(parts.netloc, parts.path.strip("/"))

    def __truediv__(self, path: str) -> BucketPath:
        return BucketPath(self.bucket, f"{self.key}/{path}" if self.key else path)

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.key.rpartition("/")[2]

    @property
    def _store(self) -> S3Store:
        variables = ((name, os.environ[name]) for name in os.environ if name.startswith("AWS_"))
        return _client(self.bucket, tuple(sorted(variables)))

    # --- files --------------------------------------------------------------------------------

    def stat(self) -> Stat:
        """Size, ETag and time of a file.

        Raises
        ------
        FileNotFoundError
        StoreError, StoreUnreachableError
            As all methods here.
        """
        with _errors(self):
            about = obstore.head(self._store, self.key)
        return Stat(about["size"], about["e_tag"] or "", about["last_modified"])

    def exists(self) -> bool:
        """Whether there is a file or a folder of this name."""
        try:
            self.stat()
        except FileNotFoundError:
            return self.is_dir()
        return True

    def read_bytes(self) -> bytes:
        """A whole file; raises as :meth:`stat`."""
        with _errors(self):
            return bytes(obstore.get(self._store, self.key).bytes())

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The bytes of a file from `start` to before `stop`, as they come; raises as :meth:`stat`.

        A file that is not there raises before the first block.
        """
        options: Any = {} if stop is None else {"options": {"range": (start, stop)}}
        with _errors(self):
            blocks = iter(obstore.get(self._store, self.key, **options).stream(_READ))
            first = next(blocks, b"")
        return self._rest(bytes(first), blocks)

    def _rest(self, first: bytes, blocks: Iterator[Buffer]) -> Iterator[bytes]:
        yield first
        while True:
            with _errors(self):
                block = next(blocks, None)
            if block is None:
                return
            yield bytes(block)

    def digest(self) -> tuple[int, str]:
        """Bytes and SHA-256 of a file; raises as :meth:`stat`."""
        size, sha256 = 0, hashlib.sha256()
        for block in self.blocks():
            size += len(block)
            sha256.update(block)
        return size, sha256.hexdigest()

    def write_bytes(self, data: Buffer) -> None:
        """Put a file: it is there as a whole, or as it was before."""
        with _errors(self, "written"):
            obstore.put(self._store, self.key, data, use_multipart=False)

    def write_new(self, data: Buffer) -> None:
        """Put a file that is not there yet.

        Raises
        ------
        FileExistsError
        """
        try:
            with _errors(self, "written"):
                obstore.put(self._store, self.key, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            raise FileExistsError(str(self)) from None

    def upload(self, file: Path) -> None:
        """Put a file that is on this machine, in little memory."""
        if file.stat().st_size <= _ONE_REQUEST:
            self.write_bytes(file.read_bytes())
            return
        with _errors(self, "written"):
            obstore.put(
                self._store, self.key, file, chunk_size=_ONE_REQUEST, max_concurrency=_PARTS
            )

    def download(self, file: Path) -> None:
        """Write it to a file on this machine; raises as :meth:`stat`."""
        with file.open("wb") as out:
            out.writelines(self.blocks())

    # --- folders ------------------------------------------------------------------------------

    def is_dir(self) -> bool:
        """Whether there is a file below."""
        with _errors(self, "listed"):
            for some in obstore.list(self._store, self._prefix, chunk_size=1):
                return bool(some)
        return False

    def files(self) -> dict[str, Stat]:
        """All files below, by their path from here."""
        with _errors(self, "listed"):
            found = obstore.list(self._store, self._prefix).collect()
        skipped = len(self.key) + 1 if self.key else 0
        return {
            about["path"][skipped:]: Stat(
                about["size"], about["e_tag"] or "", about["last_modified"]
            )
            for about in found
        }

    def folders(self) -> list[BucketPath]:
        """The folders that are directly below."""
        with _errors(self, "listed"):
            found = obstore.list_with_delimiter(self._store, self._prefix)
        return [BucketPath(self.bucket, key.strip("/")) for key in found["common_prefixes"]]

    def remove(self, paths: Sequence[str] | None = None) -> None:
        """Remove these files below, by default all; one that is not there is no error."""
        names = list(self.files()) if paths is None else list(paths)
        with _errors(self, "written"):
            obstore.delete(self._store, [(self / name).key for name in names])

    @property
    def _prefix(self) -> str | None:
        return self.key or None

    # --- for other readers --------------------------------------------------------------------

    @property
    def gdal(self) -> str:
        """The name of a file for GDAL, within an environment of :func:`gdal_options`."""
        return f"/vsis3/{self.bucket}/{self.key}"

    def zarr(self) -> ObjectStore[S3Store]:
        """A store for zarr to read the folder from, in which a chunk that is missing is damage."""
        return _WholeStore(self)


def gdal_options() -> dict[str, str]:
    """What GDAL has to be told to read :attr:`BucketPath.gdal`; credentials it finds itself."""
    endpoint = urlsplit(_endpoint(os.environ) or "")
    return {
        **({"AWS_S3_ENDPOINT": endpoint.netloc + endpoint.path} if endpoint.netloc else {}),
        "AWS_HTTPS": "NO" if endpoint.scheme == "http" else "YES",
        "AWS_REGION": _region(os.environ),
        "AWS_VIRTUAL_HOSTING": "FALSE",
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_CONNECTTIMEOUT": "5",
        "GDAL_HTTP_MAX_RETRY": "3",
        "GDAL_HTTP_RETRY_DELAY": "0.5",
        "GDAL_HTTP_TIMEOUT": "60",
        "GDAL_INGESTED_BYTES_AT_OPEN": "32768",
    }


def _endpoint(variables: Mapping[str, str]) -> str | None:
    """Of another S3 than Amazon's."""
    named = variables.get("AWS_ENDPOINT_URL_S3") or variables.get("AWS_ENDPOINT_URL")
    return named.rstrip("/") if named else None


def _region(variables: Mapping[str, str]) -> str:
    return variables.get("AWS_REGION") or variables.get("AWS_DEFAULT_REGION") or "us-east-1"


class _WholeStore(ObjectStore[S3Store]):
    """Reads below a folder. All chunks are written: one that isn't there is lost, not empty."""

    def __init__(self, folder: BucketPath) -> None:
        super().__init__(folder._store, read_only=True)
        self._folder = folder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _WholeStore) and self._folder == other._folder

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return str(self._folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return _WholeStore, (self._folder,)  # without credentials

    def with_read_only(self, read_only: bool = True) -> _WholeStore:
        if not read_only:
            raise StoreError(f"{self._folder} is written by jobs only")
        return self

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> ZarrBuffer | None:
        path = self._folder / key
        with _errors(path):
            found = await super().get(path.key, prototype, byte_range)
        if found is None and path.name not in _METADATA:
            raise StoreError(f"{path} is missing: `firnline cache verify --mend` makes it anew")
        return found

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[ZarrBuffer | None]:
        return list(
            await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))
        )

    async def exists(self, key: str) -> bool:
        path = self._folder / key
        with _errors(path):
            return await super().exists(path.key)

    @property
    def supports_listing(self) -> bool:
        return False


@functools.lru_cache(maxsize=4)
def _client(bucket: str, variables: tuple[tuple[str, str], ...]) -> S3Store:
    """A bucket, with connections of its own; obstore reads the ``AWS_…`` variables itself."""
    known = dict(variables)
    endpoint = _endpoint(known)
    more: Any = {
        **({"endpoint": endpoint} if endpoint else {}),
        "checksum_algorithm": "SHA256",  # which the server compares with what it got
        "client_options": {
            "allow_http": bool(endpoint and endpoint.startswith("http:")),
            "connect_timeout": timedelta(seconds=5),
            "timeout": timedelta(seconds=120),
        },
        "retry_config": {
            "max_retries": 12,
            "retry_timeout": _PATIENCE,
            "backoff": {
                "init_backoff": timedelta(milliseconds=200),
                "max_backoff": timedelta(seconds=10),
                "base": 2,
            },
        },
    }
    return S3Store(bucket, region=_region(known), **more)


@contextmanager
def _errors(path: BucketPath, doing: str = "read") -> Iterator[None]:
    """What the bucket's client raises, as what this project does.

    Its own words are left out but for the status: they may quote what was sent.
    """
    try:
        yield
    except AlreadyExistsError:
        raise
    except (FileNotFoundError, BaseError) as error:
        answered = _STATUS.search(str(error))
        status = answered[1].strip() if answered else None
        if isinstance(error, FileNotFoundError) and doing == "read":
            raise FileNotFoundError(f"{path} is not there") from None
        if isinstance(error, FileNotFoundError) or (status or "").startswith("404"):
            raise StoreError(f"{path} can't be {doing}: there is no such bucket") from None
        denied = isinstance(error, (PermissionDeniedError, UnauthenticatedError))
        if denied or (status is not None and status[:3] in ("400", "401", "403")):
            raise StoreError(
                f"{path} can't be {doing}: the server refuses ({status or 'access denied'}); see "
                "that the AWS_… variables are those of who may read and write there"
            ) from None
        reason = f"the server answered {status}" if status else "no answer"
        raise StoreUnreachableError(f"{path} can't be {doing}: {reason}") from None
