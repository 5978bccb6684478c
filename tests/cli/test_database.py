"""``firnline migrate`` and ``firnline status``; a database that is away."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from firnline.database import connect, writing
from firnline.settings import Settings
from firnline.tables import metadata

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document

AREA = ["--bbox", "465000", "-2300000", "496000", "-2258000", "--crs", "EPSG:3413"]


@pytest.mark.parametrize(
    "command",
    [["status"], ["cache", "list"], ["migrate"], ["harvest"], ["worker", "--once"],
     ["catalog", "export", "a.parquet"], ["migrate", "--to", "sqlite:///a.db"],
     ["materialise", *AREA]],
)  # fmt: skip
def test_a_database_that_is_away(
    firn: Run, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    url = "postgresql://someone:hunter2@127.0.0.1:1/catalog"
    monkeypatch.setenv("FIRNLINE_DATABASE_URL", url)
    answer = firn(*command)
    assert answer.code == 1
    assert "did not answer" in answer.error
    assert "hunter2" not in answer.err


def test_a_database_that_is_not_migrated(firn: Run) -> None:
    answer = firn("status")
    assert answer.code == 1
    assert "firnline migrate" in answer.error
    assert firn("migrate").code == 0
    assert firn("status").code == 0


def test_settings_are_listed_with_their_variables(firn: Run) -> None:
    rows = firn("status", "--settings", "--json").document
    assert [row["name"] for row in rows] == [
        f"FIRNLINE_{name.upper()}" for name in Settings.model_fields
    ]
    assert all(row["description"] for row in rows)
    text = firn("status", "--settings").out
    assert all(row["name"] in text for row in rows)


def test_the_listed_database_url_has_no_password(
    firn: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIRNLINE_DATABASE_URL", "postgresql://someone:hunter2@db.example/catalog")
    for flag in ([], ["--json"]):
        answer = firn("status", "--settings", *flag)
        assert "someone:***@db.example" in answer.out
        assert "hunter2" not in answer.out + answer.err


def test_everything_is_moved_and_the_proof_is_printed(
    firn: Run, sample: Any, settings: Settings, bare_postgresql_url: str
) -> None:
    answer = firn("migrate", "--to", bare_postgresql_url, "--json", settings=settings)
    assert answer.code == 0, answer.err
    told = answer.document
    assert told["same"] is True
    rows = {table["table"]: table["sent"]["rows"] for table in told["tables"]}
    assert set(rows) == set(metadata.tables)
    assert rows["items"] == len(sample.mirror.cubes)
    assert all(table["sent"] == table["arrived"] for table in told["tables"])
    here = firn("status", "--json").document
    again = firn("migrate", "--to", bare_postgresql_url)
    assert again.code == 1
    assert f"it holds collections (3), harvests (1), items ({rows['items']})" in again.error

    back = settings.data_dir / "back.db"
    answer = firn("migrate", "--to", f"sqlite:///{back}", database=bare_postgresql_url)
    assert answer.code == 0
    for table in told["tables"]:
        assert re.search(
            rf"{table['table']} +{table['sent']['rows']} .*{table['sent']['digest']} +same",
            answer.out,
        )
    assert "set FIRNLINE_DATABASE_URL to use it" in answer.out
    there = firn("status", "--json", database=f"sqlite:///{back}").document
    assert {**there, "database": ""} == {**here, "database": ""}


def test_what_did_not_arrive_is_told(firn: Run, settings: Settings, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/other.db"
    assert firn("migrate", database=url).code == 0
    engine = connect(url)
    with writing(engine) as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER meddle AFTER INSERT ON items BEGIN "
            "UPDATE items SET source = 'x' WHERE key = NEW.key; END"
        )
    engine.dispose()
    answer = firn("migrate", "--to", url, "--json", settings=settings, database="")
    assert answer.code == 1
    assert answer.document["same"] is False
    differ = [table["table"] for table in answer.document["tables"] if not table["same"]]
    assert differ == ["items"]
    assert f"error: items did not arrive as sent; {url} was left empty" in answer.err
    assert firn("status", "--json", database=url).document["items"] == {}


@pytest.mark.parametrize(
    ("url", "code", "says"),
    [
        ("mysql://x/y", 2, "--to: mysql is not supported"),
        ("nonsense", 2, "--to: it is not a database URL"),
        ("sqlite://", 2, "in memory"),
        ("postgresql://someone:hunter2@127.0.0.1:1/catalog", 1, "did not answer"),
    ],
)
def test_where_it_can_t_be_moved_to(firn: Run, url: str, code: int, says: str) -> None:
    answer = firn("migrate", "--to", url)
    assert answer.code == code
    assert says in answer.error
    assert "hunter2" not in answer.err


def test_the_schema_as_json(firn: Run, tmp_path: Path) -> None:
    assert firn("migrate", "--json").document == {
        "database": f"sqlite:///{tmp_path / 'data' / 'firnline.db'}"
    }
