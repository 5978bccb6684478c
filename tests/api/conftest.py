"""A database with known items, the application over it, and ways to ask it."""

from __future__ import annotations

import shutil
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pytest
import shapely
import uvicorn
from fastapi import FastAPI
from shapely.geometry import mapping
from shapely.geometry.base import BaseGeometry
from sqlalchemy import Connection, Engine

from firnline.api.app import create_app
from firnline.database import (
    ItemRow,
    connect,
    migrate,
    put_collections,
    put_items,
    writing,
)
from firnline.properties import searchable
from firnline.settings import Settings

with warnings.catch_warnings():
    # Starlette 1.10 wants `httpx2` for its test client, which nothing else here needs.
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

ENGINES = ["sqlite", "postgresql"]
"""Databases that the tests run on: a fixture ``<name>_url`` gives a migrated, empty one."""

CUBES = "itslive-cubes"
SHARED = Path(__file__).parents[3] / "shared"


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def make_item(
    id: str,
    footprint: BaseGeometry,
    start: datetime = datetime(2018, 1, 1, tzinfo=UTC),
    end: datetime = datetime(2019, 1, 1, tzinfo=UTC),
    collection: str = CUBES,
    properties: Mapping[str, Any] | None = None,
    **members: Any,
) -> ItemRow:
    """A valid STAC item as a row, its JSON without links as the harvester stores it."""
    content = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [],
        "id": id,
        "collection": collection,
        "bbox": list(footprint.bounds),
        "geometry": mapping(footprint),
        "properties": {
            "datetime": None,
            "start_datetime": start.isoformat().replace("+00:00", "Z"),
            "end_datetime": end.isoformat().replace("+00:00", "Z"),
            **(properties or {}),
        },
        "assets": {},
        **members,
    }
    return ItemRow(
        collection, id, start, end, footprint, orjson.dumps(content), "digest", "synthetic",
        searchable(content["properties"]),
    )  # fmt: skip


def make_collection(id: str) -> tuple[str, bytes]:
    content = {
        "type": "Collection",
        "stac_version": "1.1.0",
        "id": id,
        "title": f"The {id}",
        "description": "Synthetic, for tests.",
        "license": "CC-BY-4.0",
        "extent": {
            "spatial": {"bbox": [[-180, -90, 180, 90]]},
            "temporal": {"interval": [["1984-01-01T00:00:00Z", None]]},
        },
    }
    return id, orjson.dumps(content)


def put(engine: Engine, rows: Iterable[ItemRow]) -> None:
    with writing(engine) as connection:
        put_items(connection, list(rows))


class Client:
    """The application, asked in-process."""

    def __init__(self, app: FastAPI, **options: Any) -> None:
        self.http = TestClient(app, raise_server_exceptions=False, **options)

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def post(self, path: str, body: Any, status: int = 200) -> dict[str, Any]:
        answer = self.http.post(path, json=body)
        assert answer.status_code == status, answer.text
        return dict(answer.json())

    def ids(self, **params: Any) -> list[str]:
        """Ids of all items that GET /search finds, page by page."""
        return [item["id"] for page in self.pages("/search", **params) for item in page["features"]]

    def posted_ids(self, **body: Any) -> list[str]:
        page = self.post("/search", {"limit": 10_000, **body})
        assert page["numberMatched"] == page["numberReturned"] == len(page["features"])
        return [item["id"] for item in page["features"]]

    def pages(self, path: str, **params: Any) -> Iterator[dict[str, Any]]:
        page = self.get(path, **params)
        while True:
            yield page
            following = [link for link in page["links"] if link["rel"] == "next"]
            if not following:
                return
            answer = self.http.get(following[0]["href"])
            assert answer.status_code == 200, answer.text
            page = answer.json()

    def problem(self, method: str, path: str, status: int, **options: Any) -> dict[str, Any]:
        """The problem that a bad request gets."""
        answer = self.http.request(method, path, **options)
        assert answer.status_code == status, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert {"type", "title", "status", "detail", "instance"} <= problem.keys()
        assert problem["status"] == status
        return dict(problem)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """A database with three collections and no items."""
    engine = connect(request.getfixturevalue(f"{request.param}_url"))
    with writing(engine) as connection:
        put_collections(connection, map(make_collection, [CUBES, "subsets", "velocity-mosaics"]))
    yield engine
    engine.dispose()


@pytest.fixture(scope="module")
def catalogs(
    migrated_sqlite: Path, postgres_server: Any, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[Iterable[ItemRow]], dict[str, Connection]]]:
    """Makes a connection to a database of each kind that has these items, for all of a module."""
    with ExitStack() as stack:

        def made(rows: Iterable[ItemRow]) -> dict[str, Connection]:
            rows = list(rows)
            path = tmp_path_factory.mktemp("catalog") / "catalog.db"
            shutil.copy(migrated_sqlite, path)
            name = stack.enter_context(postgres_server.database())
            connections = {}
            for url in (f"sqlite:///{path}", postgres_server.url(name)):
                engine = connect(url)
                stack.callback(engine.dispose)
                migrate(engine)
                with writing(engine) as connection:
                    put_collections(connection, map(make_collection, {r.collection for r in rows}))
                    put_items(connection, rows)
                reading = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
                connections[engine.dialect.name] = stack.enter_context(reading)
            return connections

        yield made


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, data_dir=tmp_path)  # type: ignore[call-arg]


@pytest.fixture
def app(engine: Engine, settings: Settings) -> FastAPI:
    return create_app(settings, engine)


@pytest.fixture
def client(app: FastAPI) -> Client:
    return Client(app)


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application behind a real server on loopback; gives its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture
def served(app: FastAPI) -> Iterator[str]:
    with serving(app) as url:
        yield url


def box(west: float, south: float, east: float, north: float) -> BaseGeometry:
    return shapely.box(west, south, east, north)
