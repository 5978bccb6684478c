"""Databases for the tests: SQLite files, and a private PostgreSQL with PostGIS.

PostgreSQL is started from the binaries of this machine (Debian: ``postgresql-15-postgis-3``), in a
temporary folder, on a socket that no one else sees, and is gone afterwards. Environment:

- ``FIRNLINE_TEST_POSTGRES``: URL of a server to use instead (its user may create databases);
- ``FIRNLINE_TEST_REQUIRE_POSTGRES=1``: fail instead of skip where there is neither.

Test modules can't import each other by name in pytest's ``importlib`` mode: ``conftest.py`` loads
this file by its path and registers it as a plugin.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import Engine
from sqlalchemy.engine import URL, make_url

from firnline.database import connect, migrate
from firnline.tables import metadata

DATABASES = ("sqlite", "postgresql")
_SERVER_OPTIONS = {
    "listen_addresses": "",
    "fsync": "off",  # the data need not outlive the tests
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "timezone": "UTC",
}


def _unavailable(reason: str) -> NoReturn:
    if os.environ.get("FIRNLINE_TEST_REQUIRE_POSTGRES") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def _binaries() -> Path:
    """The folder of the newest PostgreSQL on this machine that has PostGIS (Debian's layout)."""
    controls = Path("/usr/share/postgresql").glob("*/extension/postgis.control")
    for version in sorted((control.parts[-3] for control in controls), key=int, reverse=True):
        binaries = Path("/usr/lib/postgresql") / version / "bin"
        if (binaries / "initdb").exists():
            return binaries
    _unavailable("no PostgreSQL with PostGIS: install postgresql-15-postgis-3")


class PostgresServer:
    """A server on which databases are made and dropped.

    One that was started here can be stopped, as by a crash, and started again.
    """

    def __init__(
        self,
        url: str,
        stop: Callable[[], None] = lambda: None,
        start: Callable[[], None] = lambda: None,
    ) -> None:
        self._url = make_url(url)
        self.stop, self.start = stop, start

    def url(self, database: str) -> str:
        """The SQLAlchemy URL of a database."""
        return self._url.set(database=database).render_as_string(hide_password=False)

    def run(self, statement: str, *names: str) -> None:
        """Run a statement outside of any transaction, its ``{}`` being names."""
        composed = sql.SQL(statement).format(*map(sql.Identifier, names))  # type: ignore[arg-type]
        with psycopg.connect(_conninfo(self._url), autocommit=True) as connection:
            connection.execute(composed)

    def empty(self, database: str) -> None:
        """Take every row from a migrated database: ten times as fast as to make another one."""
        tables = sql.SQL(", ").join(map(sql.Identifier, metadata.tables))
        with psycopg.connect(_conninfo(self._url.set(database=database))) as connection:
            # connections that an earlier test has left behind may hold locks
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            connection.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY").format(tables))

    @contextmanager
    def database(self, *, english: bool = False) -> Iterator[str]:
        """A new database; its name. By the server's locale, or with the order of English text."""
        name = f"firnline_test_{uuid.uuid4().hex[:12]}"
        order = " LOCALE_PROVIDER icu ICU_LOCALE 'en-US'" if english else ""
        self.run(f"CREATE DATABASE {{}} TEMPLATE template0{order}", name)
        try:
            yield name
        finally:
            self.run("DROP DATABASE {} WITH (FORCE)", name)


def _conninfo(url: URL) -> str:
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


@contextmanager
def _private_server(options: Mapping[str, str] = _SERVER_OPTIONS) -> Iterator[PostgresServer]:
    """A server of one's own, stopped and removed at the end; benchmarks have other options."""
    binaries = _binaries()
    identity: dict[str, Any] = {}
    owner = pwd.getpwuid(os.getuid())
    if owner.pw_uid == 0:  # initdb and postgres refuse to run as root
        names = {entry.pw_name: entry for entry in pwd.getpwall()}
        owner = names.get("postgres") or names["nobody"]
        identity = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    # not below pytest's own folder, which others may not enter; short, since it holds a socket
    folder = Path(tempfile.mkdtemp(prefix="firnline-pg-", dir="/tmp"))
    server: subprocess.Popen[bytes] | None = None

    def start() -> None:
        nonlocal server
        with log.open("ab") as stream:
            server = subprocess.Popen(
                command, **surroundings, **identity, stdout=stream, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                psycopg.connect(_conninfo(make_url(url))).close()
                break
            except psycopg.OperationalError:
                if server.poll() is not None or time.monotonic() > deadline:
                    _unavailable(f"PostgreSQL did not start: {log.read_text().strip()}")
                time.sleep(0.02)

    def stop() -> None:
        nonlocal server
        if server is not None:
            server.send_signal(3)  # SIGQUIT, an immediate shutdown: nothing is worth a checkpoint
            server.wait(30)
            server = None

    try:
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        data, log = folder / "data", folder / "log"
        surroundings: dict[str, Any] = {
            "cwd": folder,
            "env": {"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        }
        initdb = [binaries / "initdb", "--pgdata", data, "--username", "firnline", "--no-sync"]
        made = subprocess.run(
            [*initdb, "--auth", "trust", "--encoding", "UTF8"],
            **surroundings, **identity, capture_output=True, text=True,
        )  # fmt: skip
        if made.returncode:
            _unavailable(f"initdb failed: {made.stderr.strip()}")
        settings = {**options, "unix_socket_directories": str(folder)}
        command = ["setpriv", "--pdeathsig", "QUIT"]  # it ends with the tests, even if killed
        command += [binaries / "postgres", "-D", data]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        url = f"postgresql+psycopg://firnline@/postgres?host={folder}"
        start()
        yield PostgresServer(url, stop, start)
    finally:
        stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mortal_postgres() -> Iterator[PostgresServer]:
    """A server of one test's own, which it may stop and start."""
    with _private_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL with PostGIS, started for these tests or named by FIRNLINE_TEST_POSTGRES."""
    given = os.environ.get("FIRNLINE_TEST_POSTGRES")
    if given:
        yield PostgresServer(given)
        return
    with _private_server() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_postgresql(postgres_server: PostgresServer) -> Iterator[str]:
    """Name of a database that has its schema; tests share it one after the other."""
    with postgres_server.database() as name:
        engine = connect(postgres_server.url(name))
        migrate(engine)
        engine.dispose()
        yield name


@pytest.fixture
def postgresql_url(postgres_server: PostgresServer, migrated_postgresql: str) -> str:
    """A migrated, empty PostgreSQL database."""
    postgres_server.empty(migrated_postgresql)
    return postgres_server.url(migrated_postgresql)


@pytest.fixture
def bare_postgresql_url(postgres_server: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database without any schema."""
    with postgres_server.database() as name:
        yield postgres_server.url(name)


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database file that has its schema, to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "catalog.db"
    engine = connect(f"sqlite:///{path}")
    migrate(engine)
    engine.dispose()
    return path


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_sqlite: Path) -> str:
    """A migrated, empty SQLite database."""
    path = shutil.copy(migrated_sqlite, tmp_path / "catalog.db")
    return f"sqlite:///{path}"


@pytest.fixture
def bare_sqlite_url(tmp_path: Path) -> str:
    """An SQLite database without any schema."""
    return f"sqlite:///{tmp_path / 'bare.db'}"


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest) -> str:
    """A migrated, empty database of each kind in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture(params=DATABASES)
def bare_url(request: pytest.FixtureRequest) -> str:
    """A database without schema, of each kind in turn."""
    return str(request.getfixturevalue(f"bare_{request.param}_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """Engine on a migrated, empty database of each kind in turn."""
    engine = connect(database_url)
    yield engine
    engine.dispose()
