"""``firnline cache``: what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

Run = Any  # of conftest.py, which gives an Answer: code, out, err, error, document


def test_no_such_subset(firn: Run) -> None:
    answer = firn("cache", "show", "subset-none")
    assert answer.code == 1
    assert "there is no subset 'subset-none'" in answer.error


def test_from_damage_to_eviction(firn: Run, sample: Any, tmp_path: Any) -> None:
    settings = sample.settings(tmp_path / "data")
    left, bottom, _, top = sample.mirror.aoi
    made = firn(
        "materialise", "--bbox", left, bottom, left + 2400, top, "--crs", "EPSG:3413",
        "--variables", "vx", "--composite", "none", "--json", settings=settings,
    ).document  # fmt: skip
    id, folder = made["item"], made["folder"]
    (row,) = firn("cache", "verify", "--json").document
    assert (row["id"], row["damage"]) == (id, [])
    chunk = next(path for path in Path(folder).rglob("c/*/*/*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    damaged = firn("cache", "verify")
    assert damaged.code == 1
    assert f"{id}  damaged" in damaged.out
    mended = firn("cache", "verify", "--mend", "--json")
    assert mended.code == 1
    assert firn("worker", "--once").code == 0
    assert firn("cache", "verify", id).code == 0
    assert firn("cache", "pin", id).code == 0
    assert "pinned" in firn("cache", "evict", id).error
    assert firn("cache", "list", "--json").document[0]["pinned"] is True
    assert firn("cache", "evict", "--quota", "0").out == "nothing to remove\n"
    assert firn("cache", "unpin", id).code == 0
    assert firn("cache", "evict", id, "--json").document[0]["id"] == id
    assert firn("cache", "list", "--json").document == []
    assert firn("cache", "evict", "--quota", "much").code == 2
    assert firn("cache", "evict", id, "--quota", "1GB").code == 2
