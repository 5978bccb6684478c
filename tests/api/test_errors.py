from __future__ import annotations

import inspect
import logging
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from firnline import errors
from firnline.api import parameters
from firnline.api.app import create_app
from firnline.api.errors import STATUS, status_of
from firnline.settings import Settings
from tests.api.conftest import CUBES, Client, box, make_item, put

TREE = [
    each
    for _, each in inspect.getmembers(errors, inspect.isclass)
    if issubclass(each, errors.FirnlineError)
]


@pytest.mark.parametrize("error", TREE, ids=lambda error: error.__name__)
def test_every_error_has_a_status_that_fits_its_kind(error: type[Exception]) -> None:
    status = status_of(error("x"))
    if issubclass(error, errors.InputError):
        assert status == 400
    elif issubclass(error, errors.SourceError):
        assert status == 502
    else:
        assert status == {
            errors.NotFoundError: 404,
            errors.ConflictError: 409,
            errors.ForbiddenError: 403,
            errors.QuotaError: 429,
            errors.JobDismissedError: 409,
            errors.DatabaseError: 503,
            errors.StoreUnreachableError: 503,
        }.get(error, 500)


def test_the_table_names_classes_of_the_tree_only() -> None:
    assert set(STATUS) <= set(TREE)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.CRSError("crs 'x' is not known"), 400),
        (errors.TooLargeError("the area is 9 km2"), 400),
        (errors.NotFoundError("there is no such thing"), 404),
        (errors.ConflictError("it has ended already"), 409),
        (errors.SourceUnreachableError("its-live-data did not answer"), 502),
    ],
)
def test_the_message_is_the_detail(
    client: Client, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int
) -> None:
    _break(monkeypatch, error)
    problem = client.problem("GET", "/search", status)
    assert problem["detail"] == str(error)
    assert problem["instance"] == "/search"
    assert problem["type"] == "about:blank"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("password=hunter2 in /srv/secret.py"),
        errors.StoreError("/srv/secret is damaged: hunter2"),
        errors.DatabaseError("the database did not answer: user hunter2 at 10.0.0.7, secret"),
        AssertionError("hunter2 secret"),
    ],
)
def test_what_is_wrong_inside_stays_inside_and_is_logged_once(
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    _break(monkeypatch, error)
    with caplog.at_level(logging.ERROR):
        problem = client.problem("GET", "/search", status_of(error))
    assert "hunter2" not in str(problem)
    assert "secret" not in str(problem)
    assert "Traceback" not in str(problem)
    [record] = caplog.records
    if isinstance(error, errors.DatabaseError):  # an outage is one line, not a stack a request
        assert record.exc_info is None
        assert str(error) in record.getMessage()
    else:
        assert record.exc_info is not None
        assert record.exc_info[1] is error


def test_an_outage_is_not_an_empty_result(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    for name, reason in (("new.db", "has no schema yet"), ("folder.db", "did not answer")):
        settings = Settings(data_dir=tmp_path, database_url=f"sqlite:///{tmp_path / name}")
        client = Client(create_app(settings))
        for path in ("/", "/search", "/collections", "/search?bbox=0,0,1,1", "/jobs"):
            problem = client.problem("GET", path, 503)
            assert str(tmp_path) not in str(problem)
        assert reason in client.problem("GET", "/readyz", 503)["detail"]
        assert client.http.get("/healthz").status_code == 200


def _break(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def broken(*_args: object) -> None:
        raise error

    monkeypatch.setattr(parameters, "normalised", broken)


def test_ready(client: Client, engine: Engine) -> None:
    assert client.get("/readyz") == {"status": "ready"}
    assert client.get("/healthz") == {"status": "up"}
    with engine.begin() as connection:
        version = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    try:
        assert "firnline migrate" in client.problem("GET", "/readyz", 503)["detail"]
    finally:  # on PostgreSQL other tests get the same database, emptied
        with engine.begin() as connection:
            restored = text("UPDATE alembic_version SET version_num = :version")
            connection.execute(restored, {"version": version})


def test_openapi_is_served_with_problems_for_errors(client: Client) -> None:
    answer = client.http.get("/api")
    assert answer.headers["content-type"] == "application/vnd.oai.openapi+json;version=3.0"
    paths = answer.json()["paths"]
    assert {"/search", "/processes/{process_id}/execution", "/jobs/{job_id}/results"} <= set(paths)
    for operations in paths.values():
        for operation in operations.values():
            assert "application/problem+json" in operation["responses"]["4XX"]["content"]
            assert "422" not in operation["responses"]


def test_a_reader_is_not_held_up_by_a_writer(client: Client, engine: Engine) -> None:
    put(engine, [make_item("a", box(0, 0, 1, 1))])
    with engine.execution_options(firnline_writes=True).begin() as connection:
        connection.exec_driver_sql("DELETE FROM items")
        assert client.ids(collections=CUBES) == ["a"]
        connection.rollback()
