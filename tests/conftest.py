"""What all tests share: no network but loopback, and a sample mirror that is harvested once."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from sqlalchemy import Engine

from firnline.database import connect, migrate
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import MirrorServer
from firnline.indexer.sample import Mirror, write_mirror
from firnline.settings import Settings

# How long an example takes is the machine's affair, which may have other work. The examples are the
# same in every run, so that one that fails is due to a change; `--hypothesis-profile=search` looks
# at others.
hypothesis.settings.register_profile(
    "search", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "firnline", hypothesis.settings.get_profile("search"), derandomize=True
)
hypothesis.settings.load_profile("firnline")


def pytest_configure(config: pytest.Config) -> None:
    """Register the fixtures of these files: files here can't import each other by name."""
    for name in ("databases", "s3"):
        if config.pluginmanager.has_plugin(name):
            continue
        path = Path(__file__).with_name(f"{name}.py")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where dataclasses look for it
        spec.loader.exec_module(module)
        config.pluginmanager.register(module, name)


@pytest.fixture(scope="session", autouse=True)
def _only_loopback() -> Iterator[None]:
    """Refuse connections that leave this machine."""
    connect_anywhere = socket.socket.connect

    def connect_here(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple):
            host = str(address[0])
            if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
                raise AssertionError(f"a test tried to reach {host}")
        connect_anywhere(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_here)
        # commands that run in this process don't make it, and the next tests, slower
        patch.setattr("firnline.child.step_back", lambda: None)
        for command in ("serve", "catalog"):
            patch.setattr(f"firnline.cli.{command}.step_back", lambda: None)
        for name in [name for name in os.environ if name.startswith("FIRNLINE_")]:
            if not name.startswith(("FIRNLINE_TEST_", "FIRNLINE_SHARED_")):
                patch.delenv(name)
        yield


@dataclass(frozen=True)
class Sample:
    """A served sample mirror; ``server.requests`` says what was asked of it."""

    server: MirrorServer
    mirror: Mirror
    catalog: Path  # a database that harvested it

    def settle(self) -> None:
        """Wait until the mirror has answered what those who have ended had asked; forget it."""
        before = -1
        while before != (before := len(self.server.requests)):
            time.sleep(0.3)
        self.server.clear()

    def settings(self, folder: Path, **more: Any) -> Settings:
        """Settings of an installation of its own that has the mirror's catalog."""
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.catalog, folder / "firnline.db")
        return Settings(
            **{
                "data_dir": folder,
                "allowed_sources": (f"{self.server.url}/",),
                "catalog_urls": (self.mirror.catalog_url,),
                "mosaic_roots": (self.mirror.mosaic_root,),
                "lease_seconds": 10.0,
                "retry_seconds": 0.0,
                "_env_file": None,
                **more,
            }
        )


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sample]:
    """The sample mirror with few pairs and no mosaics, so that tests are quick."""
    folder = tmp_path_factory.mktemp("sample")
    with MirrorServer(folder / "mirror") as server:
        mirror = write_mirror(folder / "mirror", server.url, pairs=60, mosaics=False)
        settings = Settings(data_dir=folder, allowed_sources=(f"{server.url}/",), _env_file=None)
        engine = connect(settings.database)
        migrate(engine)
        harvest(engine, settings, [mirror.catalog_url], mosaics=False)
        with engine.connect() as connection:
            # all of it into the one file that tests copy
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        engine.dispose()
        yield Sample(server, mirror, folder / "firnline.db")


@pytest.fixture
def settings(sample: Sample, tmp_path: Path) -> Settings:
    """An installation of its own, with the sample's catalog and an empty cache."""
    sample.server.faults = None
    sample.server.clear()
    return sample.settings(tmp_path / "data")


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    """The database of `settings`."""
    engine = connect(settings.database)
    yield engine
    engine.dispose()


@pytest.fixture
def freeze(settings: Settings) -> Callable[[subprocess.Popen[bytes]], None]:
    """Stops a process, and not while it holds the lock that all who write would wait for."""

    def stop(process: subprocess.Popen[bytes]) -> None:
        while True:
            process.send_signal(signal.SIGSTOP)
            os.waitpid(process.pid, os.WUNTRACED)
            database = settings.data_dir / "firnline.db"
            try:
                with closing(sqlite3.connect(database, timeout=0, isolation_level=None)) as it:
                    it.execute("BEGIN IMMEDIATE")
                    it.execute("ROLLBACK")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.01)
            else:
                return

    return stop
