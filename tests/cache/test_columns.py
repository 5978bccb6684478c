"""Columns that are made when they are looked at."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from firnline.cache.columns import Columns


def test_names_are_known_and_nothing_is_made_until_it_is_looked_at() -> None:
    made: list[str] = []

    def maker(name: str) -> Any:
        def make() -> np.ndarray[Any, Any]:
            made.append(name)
            return np.full(3, len(name))

        return make

    columns = Columns({name: maker(name) for name in ("b", "aa")})
    assert (list(columns), len(columns)) == (["b", "aa"], 2)
    assert "aa" in columns
    assert "c" not in columns
    assert columns.get("c") is None
    assert made == []
    assert columns["aa"].tolist() == [2, 2, 2]
    assert columns["aa"] is columns["aa"]
    assert made == ["aa"]
    with pytest.raises(KeyError):
        columns["c"]


def test_what_a_maker_raises_comes_to_each_who_looks() -> None:
    def fail() -> Any:
        raise OSError("gone")

    columns = Columns({"a": fail})
    for _ in range(2):
        with pytest.raises(OSError, match="gone"):
            columns["a"]


def test_threads_share_what_one_of_them_makes() -> None:
    made, together = [], threading.Barrier(8)

    def make() -> np.ndarray[Any, Any]:
        made.append(1)
        return np.arange(4)

    columns = Columns({"a": make})

    def look(_: int) -> int:
        together.wait()
        return id(columns["a"])

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(look, range(8)))) == 1
    assert made == [1]


def test_they_are_pickled_made() -> None:
    columns = Columns({"a": lambda: np.arange(4)})
    (again,) = [pickle.loads(pickle.dumps(columns))]
    assert isinstance(again, dict)
    assert again["a"].tolist() == [0, 1, 2, 3]
