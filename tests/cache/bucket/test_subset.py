"""A subset in a bucket: that which a directory holds, read, refreshed and removed."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import xarray as xr
from sqlalchemy import Engine, select

import firnline
from firnline.cache import eviction, jobs, store, worker
from firnline.cache.containment import StoredTiles
from firnline.cache.opening import open_stored, subset_place
from firnline.cache.request import Request
from firnline.database import connect, get_item, reading
from firnline.errors import StoreError
from firnline.settings import Settings
from firnline.tables import subsets
from tests.cache.bucket.conftest import VARIABLES, digests, left_over, made


@dataclass(frozen=True)
class Installation:
    engine: Engine
    settings: Settings
    requests: int
    """That were made of the mirror for the first subset."""


@pytest.fixture(scope="module")
def kept(
    sample: Any, asked: Request, tmp_path_factory: pytest.TempPathFactory, _environment: None
) -> Iterator[Installation]:
    """An installation whose store is in the bucket and has the subset."""
    settings = sample.settings(
        tmp_path_factory.mktemp("kept") / "data",
        memory_limit=1,
        cache_url="s3://private/kept/cache",
        chunk_cache_quota=0,
    )
    engine = connect(settings.database)
    sample.server.clear()
    with structlog.testing.capture_logs():
        made(engine, settings, asked)
    yield Installation(engine, settings, len(sample.server.requests))
    engine.dispose()


def test_a_bucket_and_a_directory_hold_the_same(
    kept: Installation, asked: Request, on_disk: dict[str, tuple[int, str]]
) -> None:
    engine, settings = kept.engine, kept.settings
    place = subset_place(engine, settings, asked.subset_id)
    with reading(engine) as connection:
        row = connection.execute(
            select(subsets.c.generation, subsets.c.size).where(subsets.c.id == asked.subset_id)
        ).one()
        content = get_item(connection, "subsets", asked.subset_id)
    assert str(place) == f"{settings.cache_url}/subsets/{asked.subset_id}/{row.generation}"
    assert digests(place) == on_disk
    assert left_over(settings) == set()
    record = json.loads((place / "provenance.json").read_bytes())
    assert {n: (f["size"], f["sha256"]) for n, f in record["files"].items()} == on_disk
    item = json.loads(content or "")
    sizes = {path: about.size for path, about in place.files().items()}
    for asset in item["assets"].values():
        name = asset["href"].split("/", 4)[4]
        expected = sizes.get(name) or sum(
            size for path, size in sizes.items() if path.startswith(f"{name}/")
        )
        assert asset["file:size"] == expected, name
    assert row.size == sum(sizes.values())
    assert b"AKID" not in (content or b"")
    assert b"s3://" not in (content or b"")
    [checked] = eviction.verify(engine, settings, [asked.subset_id])
    assert (checked.damage, checked.files) == ((), len(on_disk))


def test_readers_in_python(kept: Installation, asked: Request) -> None:
    inputs = {name: value for name, value in asked.to_inputs().items() if value is not None}
    with open_stored(kept.engine, kept.settings, asked.subset_id, "composite") as ds:
        speed = ds["v"].values
    assert np.isfinite(speed).any()
    pairs = firnline.open(settings=kept.settings, **inputs)
    assert isinstance(pairs, xr.Dataset)
    row, column = pairs.sizes["y"] // 2, pairs.sizes["x"] // 2
    series = firnline.series(
        pairs, x=float(pairs.x[column]), y=float(pairs.y[row]), variables=["vx"]
    )
    expected = pairs["vx"].isel(y=row, x=column).dropna("mid_date")
    np.testing.assert_array_equal(series["vx"], expected.values)
    assert len(series) > 0


def test_a_chunk_that_is_not_there_is_an_error(kept: Installation, asked: Request) -> None:
    """Never missing values; and no credentials go along with a store."""
    place = subset_place(kept.engine, kept.settings, asked.subset_id)
    shard = next(place / name for name in place.files() if name.startswith("pairs.zarr/vx/c/"))
    content = shard.read_bytes()
    place.remove([shard.key.removeprefix(f"{place.key}/")])
    try:
        with (
            pytest.raises(StoreError, match=r"pairs\.zarr/vx/c/.* is missing: .*--mend"),
            open_stored(kept.engine, kept.settings, asked.subset_id, "pairs") as ds,
        ):
            ds["vx"].load()
    finally:
        shard.write_bytes(content)
    packed = pickle.dumps((place / "pairs.zarr").zarr())
    assert b"secret" not in packed
    assert pickle.loads(packed) == (place / "pairs.zarr").zarr()


def test_a_request_inside_is_answered_from_the_bucket(
    sample: Any, kept: Installation, asked: Request, tmp_path: Path
) -> None:
    left, bottom, _, top = sample.mirror.aoi
    inputs = {
        **asked.to_inputs(), "bbox": [left, bottom, left + 2400, top], "geometry": None,
        "composite": None,
    }  # fmt: skip
    inner = Request.parse({k: v for k, v in inputs.items() if v is not None}, kept.settings)
    inner = inner.model_copy(update={"composite": None})
    assert kept.requests > 0
    sample.server.clear()
    place = made(kept.engine, kept.settings, inner)
    assert sample.server.requests == []
    other = sample.settings(tmp_path / "other", memory_limit=1)
    elsewhere = connect(other.database)
    worker.finish(elsewhere, other, jobs.submit(elsewhere, inner))
    folder = subset_place(elsewhere, other, inner.subset_id)
    elsewhere.dispose()
    assert isinstance(folder, Path)
    assert digests(place) == {
        path: (stored.size, stored.sha256)
        for path, stored in store.files(folder)
        if path != "provenance.json"
    }


@pytest.mark.parametrize("what", ["vx/zarr.json", "vx/c/"])
def test_a_subset_that_is_being_removed_while_it_is_read(
    sample: Any, kept: Installation, asked: Request, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """File by file, as buckets do: the job begins anew, from the cubes."""
    left, bottom, _, _ = sample.mirror.aoi
    left, bottom = left + 3000, bottom + (2400 if what == "vx/c/" else 0)  # in no other subset
    inputs = {
        "bbox": [left, bottom, left + 1200, bottom + 1200], "crs": "EPSG:3413",
        "variables": VARIABLES, "strain": False,
    }  # fmt: skip
    inner = Request.parse(inputs, kept.settings)
    place = subset_place(kept.engine, kept.settings, asked.subset_id)
    saved = {name: (place / name).read_bytes() for name in place.files()}
    going = [name for name in saved if name.startswith(f"pairs.zarr/{what}")]
    assert going
    copy = StoredTiles._copy

    def gone(self: StoredTiles, *arguments: Any) -> None:
        place.remove(["provenance.json", *going])
        copy(self, *arguments)

    monkeypatch.setattr(StoredTiles, "_copy", gone)
    sample.server.clear()
    try:
        made_anew = made(kept.engine, kept.settings, inner)
    finally:
        for name, content in saved.items():
            (place / name).write_bytes(content)
    assert json.loads((made_anew / "provenance.json").read_bytes())["read_from"] is None
    assert sample.server.requests != []


def test_a_refreshed_subset_is_another_generation(
    kept: Installation, asked: Request, on_disk: dict[str, tuple[int, str]]
) -> None:
    engine, settings = kept.engine, kept.settings
    before = subset_place(engine, settings, asked.subset_id)
    job = worker.finish(engine, settings, jobs.submit(engine, asked, refresh=True))
    assert job.status == "successful"
    after = subset_place(engine, settings, asked.subset_id)
    assert after != before
    assert digests(before) == digests(after) == on_disk
