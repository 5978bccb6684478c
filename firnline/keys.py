"""API keys: who may do what over HTTP.

A key is ``firn_<id>_<secret>``. The secret has 256 bits of chance, so that one round of SHA-256 is
enough to store it by; it is shown once, when it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Engine, insert, select, update

from firnline.database import reading, writing
from firnline.errors import InputError, NotFoundError
from firnline.tables import api_keys

SCOPES = ("read", "materialise", "admin")
"""What a key may do; each includes those before it: search and fetch, start and stop jobs of its
own, stop anyone's."""

_FORM = re.compile(r"firn_([0-9a-f]{12})_([0-9A-Za-z_-]{43})")
_FRESH = 5.0  # seconds after which a revoked key is refused at the latest
_NOBODY = bytes(32)


@dataclass(frozen=True)
class ApiKey:
    """A key without its secret."""

    id: str
    name: str
    scopes: tuple[str, ...]
    most_jobs: int | None
    created: datetime
    expires: datetime | None
    revoked: datetime | None

    def may(self, scope: str) -> bool:
        """Whether it has a scope, or one that includes it."""
        return any(SCOPES.index(own) >= SCOPES.index(scope) for own in self.scopes)

    @property
    def valid(self) -> bool:
        """Neither revoked nor expired."""
        return self.revoked is None and (self.expires is None or datetime.now(UTC) < self.expires)


_COLUMNS = [api_keys.c[name] for name in ApiKey.__dataclass_fields__]


def add(
    engine: Engine,
    name: str,
    scopes: Iterable[str] = ("read", "materialise"),
    *,
    days: float | None = None,
    most_jobs: int | None = None,
) -> tuple[ApiKey, str]:
    """Make a key; the key as it's stored, and the text that its user sends.

    Parameters
    ----------
    name
        Whose it is, or what for.
    scopes
        Words of :data:`SCOPES`.
    days
        Until it expires; None: never.
    most_jobs
        Jobs that may wait or run for it at a time; None: any number.

    Raises
    ------
    InputError
        No name, an unknown scope, a limit that allows nothing.
    """
    chosen = tuple(sorted(set(scopes), key=lambda scope: (scope not in SCOPES, scope)))
    if unknown := [scope for scope in chosen if scope not in SCOPES]:
        raise InputError(f"there is no scope {unknown[0]!r}; there are: {', '.join(SCOPES)}")
    if not chosen:
        raise InputError(f"a key needs a scope: {', '.join(SCOPES)}")
    if not name.strip() or len(name) > 200 or not name.isprintable():
        raise InputError("a key needs a name, of at most 200 printable characters")
    if days is not None and not 0 < days <= 36_500:
        raise InputError("a key is good for more than 0 and at most 36,500 days")
    if most_jobs is not None and most_jobs < 1:
        raise InputError("a key that may have no job needs no limit of jobs: give it scope read")
    id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    now = datetime.now(UTC)
    key = ApiKey(
        id=id,
        name=name.strip(),
        scopes=chosen,
        most_jobs=most_jobs,
        created=now,
        expires=None if days is None else now + timedelta(days=days),
        revoked=None,
    )
    with writing(engine) as connection:
        row = {**vars(key), "scopes": " ".join(chosen), "digest": _digest(secret)}
        connection.execute(insert(api_keys).values(row))
    return key, f"firn_{id}_{secret}"


def revoke(engine: Engine, id: str) -> ApiKey:
    """Refuse a key from now on; servers know it within seconds. It stays in the list.

    Raises
    ------
    NotFoundError
    """
    with writing(engine) as connection:
        here = api_keys.c.id == id
        connection.execute(
            update(api_keys)
            .where(here, api_keys.c.revoked.is_(None))
            .values(revoked=datetime.now(UTC))
        )
        row = connection.execute(select(*_COLUMNS).where(here)).one_or_none()
    if row is None:
        raise NotFoundError(f"there is no API key {id[:80]!r}; `firnline key list` shows them")
    return _key(row)


def every(engine: Engine) -> list[ApiKey]:
    """All keys, those that are revoked or expired too, by the time they were made."""
    with reading(engine) as connection:
        rows = connection.execute(select(*_COLUMNS).order_by(api_keys.c.created, api_keys.c.id))
        return [_key(row) for row in rows]


class Keyring:
    """The keys as a server holds them: read again every few seconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._keys: dict[str, tuple[ApiKey, bytes]] = {}
        self._read = float("-inf")
        self._lock = threading.Lock()

    @property
    def due(self) -> bool:
        """Whether :meth:`refresh` has to be called before the next look."""
        return time.monotonic() - self._read > _FRESH

    def refresh(self) -> None:
        """Read the keys from the database.

        Raises
        ------
        DatabaseError
            It does not answer: no one can be let in then.
        """
        with self._lock:
            if not self.due:
                return
            with reading(self._engine) as connection:
                rows = connection.execute(select(*_COLUMNS, api_keys.c.digest)).all()
            self._keys = {row.id: (_key(row[:-1]), row.digest) for row in rows}
            self._read = time.monotonic()

    def __bool__(self) -> bool:
        """Whether a key was ever made."""
        return bool(self._keys)

    def find(self, text: str) -> ApiKey | None:
        """The valid key that this is, if it is one; compared in constant time."""
        match = _FORM.fullmatch(text)
        id, secret = match.groups() if match else ("", "")
        key, digest = self._keys.get(id, (None, _NOBODY))
        same = hmac.compare_digest(_digest(secret), digest)
        return key if same and key is not None and key.valid else None


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _key(row: object) -> ApiKey:
    values = dict(zip(ApiKey.__dataclass_fields__, row, strict=True))  # type: ignore[call-overload]
    return ApiKey(**{**values, "scopes": tuple(values["scopes"].split())})
