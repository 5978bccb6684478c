"""HEAD, OPTIONS and Allow, as HTTP has them, on every path."""

from __future__ import annotations

import http.client
import itertools
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from sqlalchemy import Engine

from firnline.database import connect, put_collections, writing
from tests.api.conftest import CUBES, Client, box, make_collection, make_item, put

PATHS = {
    "/": "GET, HEAD, OPTIONS",
    "/search": "GET, HEAD, OPTIONS, POST",
    "/aggregate": "GET, HEAD, OPTIONS, POST",
    f"/collections/{CUBES}/items": "GET, HEAD, OPTIONS",
    f"/collections/{CUBES}/items/a": "GET, HEAD, OPTIONS",
    "/queryables": "GET, HEAD, OPTIONS",
    "/api": "GET, HEAD, OPTIONS",
    "/jobs/none": "DELETE, GET, HEAD, OPTIONS",
    "/processes/echo/execution": "OPTIONS, POST",
}


@pytest.fixture(params=["sqlite"])  # nothing here depends on the database
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    engine = connect(request.getfixturevalue("sqlite_url"))
    with writing(engine) as connection:
        put_collections(connection, [make_collection(CUBES)])
    yield engine
    engine.dispose()


def test_options_and_405_tell_all_methods(client: Client) -> None:
    for path, allowed in PATHS.items():
        answer = client.http.options(path)
        assert (answer.status_code, answer.headers["allow"]) == (204, allowed)
        assert client.http.patch(path).headers["allow"] == allowed
        assert client.problem("PATCH", path, 405)["instance"] == path


def test_a_preflight_is_one_still(client: Client) -> None:
    asks = {"Origin": "https://maps.example", "Access-Control-Request-Method": "POST"}
    answer = client.http.options("/search", headers=asks)
    assert answer.status_code == 200
    assert "POST" in answer.headers["access-control-allow-methods"]


def test_there_are_no_methods_of_nothing(client: Client) -> None:
    client.problem("OPTIONS", "/nothing", 404)
    assert client.http.head("/nothing").status_code == 404
    assert client.http.head("/processes/echo/execution").status_code == 405


def test_head_is_get_without_its_body(served: str, engine: Engine) -> None:
    """The same status and headers, of the compressed reply too, and the connection goes on."""
    put(engine, [make_item(f"i{n}", box(n, 0, n + 1, 1)) for n in range(9)])
    connection = http.client.HTTPConnection(urlsplit(served).netloc)
    paths = ["/", "/search?limit=5", f"/collections/{CUBES}/items/i1", "/api", "/search?limit=0"]
    for path, encoding in itertools.product(paths, ["identity", "gzip", "zstd"]):
        seen = []
        for method in ("HEAD", "GET", "HEAD"):
            connection.request(method, path, headers={"Accept-Encoding": encoding})
            answer = connection.getresponse()
            headers = {name.lower(): value for name, value in answer.getheaders()}
            body = answer.read()
            assert int(headers["content-length"]) > 100
            assert len(body) == (0 if method == "HEAD" else int(headers["content-length"]))
            del headers["x-request-id"], headers["date"]
            seen.append((answer.status, headers))
        assert seen[0] == seen[1] == seen[2]
    connection.close()


def test_head_is_conditional_too_and_counted_where_it_belongs(served: str) -> None:
    first = httpx.head(f"{served}/collections/{CUBES}")
    again = httpx.head(
        f"{served}/collections/{CUBES}", headers={"If-None-Match": first.headers["etag"]}
    )
    assert (first.status_code, again.status_code) == (200, 304)
    counted = httpx.get(f"{served}/metrics").text
    assert 'method="HEAD",route="/collections/{collection_id}",status="200"} 1' in counted
