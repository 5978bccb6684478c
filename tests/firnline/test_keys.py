"""API keys: stored by digest, refused when they should be."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select, update

from firnline import keys
from firnline.database import reading, writing
from firnline.errors import InputError, NotFoundError
from firnline.keys import Keyring
from firnline.tables import api_keys


def ring(engine: Engine) -> Keyring:
    fresh = Keyring(engine)
    fresh.refresh()
    return fresh


def test_a_key_is_found_and_its_secret_is_nowhere(database: Engine) -> None:
    key, text = keys.add(database, "Sermeq", ["read"], days=10, most_jobs=3)
    secret = text.removeprefix(f"firn_{key.id}_")
    with reading(database) as connection:
        row = connection.execute(select(api_keys)).one()
    assert row.digest == hashlib.sha256(secret.encode()).digest()
    assert not any(secret in str(value) for value in row)
    found = ring(database).find(text)
    assert found == key == keys.every(database)[0]
    assert found.expires is not None
    assert found.expires - found.created == timedelta(days=10)
    assert (found.name, found.scopes, found.most_jobs) == ("Sermeq", ("read",), 3)


def test_revoked_and_expired_keys_are_not_found(database: Engine) -> None:
    revoked, revoked_text = keys.add(database, "one")
    expired, expired_text = keys.add(database, "two", days=1)
    good, good_text = keys.add(database, "three")
    keys.revoke(database, revoked.id)
    when = keys.every(database)[0].revoked
    assert keys.revoke(database, revoked.id).revoked == when, "it was revoked then, not now"
    with writing(database) as connection:
        past = datetime.now(UTC) - timedelta(seconds=1)
        connection.execute(update(api_keys).where(api_keys.c.id == expired.id).values(expires=past))
    here = ring(database)
    assert here.find(revoked_text) is None
    assert here.find(expired_text) is None
    assert here.find(good_text) == good
    assert [key.valid for key in keys.every(database)] == [False, False, True]


def test_a_keyring_knows_of_a_change_within_seconds(
    database: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("firnline.keys.time.monotonic", lambda: now)
    here = ring(database)
    assert not here
    _, text = keys.add(database, "late")
    here.refresh()
    assert here.find(text) is None, "it was read a moment ago"
    now += 5.1
    assert here.due
    here.refresh()
    assert here
    assert here.find(text) is not None


def test_scopes_include_those_before_them(database: Engine) -> None:
    allowed = {
        scope: [other for other in keys.SCOPES if keys.add(database, "x", [scope])[0].may(other)]
        for scope in keys.SCOPES
    }
    assert allowed == {
        "read": ["read"],
        "materialise": ["read", "materialise"],
        "admin": ["read", "materialise", "admin"],
    }


@given(st.text(max_size=80))
def test_nothing_else_is_a_key(text: str) -> None:
    known = keys.ApiKey("0" * 12, "x", ("read",), None, datetime.now(UTC), None, None)
    here = Keyring.__new__(Keyring)
    here._keys = {known.id: (known, hashlib.sha256(b"s" * 43).digest())}
    assert here.find(f"firn_{known.id}_{'s' * 43}") == known
    for guess in (text, f"firn_{known.id}_{text}", f"firn_{text}_{'s' * 43}"):
        assert here.find(guess) is None or guess == f"firn_{known.id}_{'s' * 43}"


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        (" ", {}, "needs a name"),
        ("a\nb", {}, "needs a name"),
        ("x", {"scopes": ["write"]}, "no scope 'write'; there are: read, materialise, admin"),
        ("x", {"scopes": []}, "needs a scope"),
        ("x", {"days": 0}, "more than 0"),
        ("x", {"days": float("nan")}, "more than 0"),
        ("x", {"most_jobs": 0}, "give it scope read"),
    ],
)
def test_bad_keys_are_not_made(
    database: Engine, name: str, options: dict[str, object], reason: str
) -> None:
    with pytest.raises(InputError, match=reason):
        keys.add(database, name, **options)  # type: ignore[arg-type]
    assert keys.every(database) == []


def test_no_such_key(database: Engine) -> None:
    with pytest.raises(NotFoundError, match="no API key 'abc'"):
        keys.revoke(database, "abc")
