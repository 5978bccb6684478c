"""``firnline cache``: what is stored."""

from __future__ import annotations

from typing import Any

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document


def test_no_such_subset(firn: Run) -> None:
    answer = firn("cache", "show", "subset-none")
    assert answer.code == 1
    assert "there is no subset 'subset-none'" in answer.error
