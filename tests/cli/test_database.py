"""``firnline migrate`` and ``firnline status``; a database that is away."""

from __future__ import annotations

from typing import Any

import pytest

from firnline.settings import Settings

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document

AREA = ["--bbox", "465000", "-2300000", "496000", "-2258000", "--crs", "EPSG:3413"]


@pytest.mark.parametrize(
    "command",
    [["status"], ["cache", "list"], ["migrate"], ["harvest"], ["worker", "--once"],
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
