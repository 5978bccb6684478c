"""``firnline key``: made, listed, revoked."""

from __future__ import annotations

from typing import Any

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document


def test_from_made_to_revoked(firn: Run) -> None:
    made = firn("key", "add", "QGIS of Ada", "--scope", "read", "--days", "30")
    assert made.code == 0
    text = made.out.strip()
    assert text.startswith("firn_")
    assert "shown this once" in made.err
    listed = firn("key", "list", "--json").document
    (row,) = listed
    assert row["name"] == "QGIS of Ada"
    assert (row["scopes"], row["state"], row["most_jobs"]) == (["read"], "valid", None)
    assert text.split("_")[1] == row["id"]
    assert text.split("_", 2)[2] not in str(listed)
    shown = firn("key", "list").out
    assert "QGIS of Ada" in shown
    assert f"until {row['expires'][:10]}" in shown
    assert firn("key", "revoke", row["id"]).code == 0
    assert firn("key", "list", "--json").document[0]["state"] == "revoked"


def test_bad_keys(firn: Run) -> None:
    answer = firn("key", "add", "x", "--scope", "write")
    assert answer.code == 2
    assert "there is no scope 'write'" in answer.error
    assert firn("key", "revoke", "none").code == 1
