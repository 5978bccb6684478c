"""Locks between processes, which end with the process that holds them, however it ends.

A database's own transaction is not enough for what takes minutes and mostly reads from elsewhere:
on SQLite it would keep all other writers out for as long.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError

from firnline.database import reading
from firnline.errors import ConflictError, DatabaseError


@contextmanager
def alone(engine: Engine, what: str) -> Iterator[None]:
    """Do something that no one else does at the same time with the same database.

    An advisory lock of a session on PostgreSQL; ``flock`` on a file beside an SQLite database
    (``DATABASE.WHAT.lock``, which stays: to remove it would give two processes two files).

    Parameters
    ----------
    what
        A short word, such as ``harvest``.

    Raises
    ------
    ConflictError
        Someone else does it; there is no waiting.
    DatabaseError
    """
    busy = ConflictError(f"another {what} of this database is under way; nothing was done")
    if engine.dialect.name == "postgresql":
        # AUTOCOMMIT: a transaction open for so long would keep dead rows from being removed.
        number = int.from_bytes(hashlib.blake2b(what.encode(), digest_size=8).digest(), signed=True)
        with reading(engine.execution_options(isolation_level="AUTOCOMMIT")) as connection:
            if not connection.scalar(select(func.pg_try_advisory_lock(number))):
                raise busy
            try:
                yield
            finally:
                with suppress(DBAPIError):  # the connection was lost, and the lock with it
                    connection.execute(select(func.pg_advisory_unlock(number)))
        return
    path = engine.url.database
    if not path or path == ":memory:":  # no one else has it
        yield
        return
    try:
        descriptor = os.open(f"{path}.{what}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DatabaseError(f"{error.filename} can't be opened: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        yield
    finally:
        os.close(descriptor)
