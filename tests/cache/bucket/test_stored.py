"""What a bucket holds: eviction, damage, orphans, files."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select, update

from firnline.cache import drafts, eviction, jobs
from firnline.cache.bucket import BucketPath
from firnline.cache.opening import open_stored
from firnline.cache.places import upload
from firnline.cache.request import Request
from firnline.database import reading, writing
from firnline.errors import NotFoundError
from firnline.settings import Settings
from firnline.tables import subsets
from tests.cache.bucket.conftest import wait_for


@pytest.fixture
def stored(database: Engine, settings: Settings, url: str) -> Callable[..., str]:
    """Stores a subset of so many bytes that was used so many hours ago."""
    place = BucketPath.parse(url)

    def make(n: int, size: int, hours: float = 5.0, *, pinned: bool = False) -> str:
        from firnline.database import put_subset

        inputs = {"bbox": [n * 1000, 0, n * 1000 + 500, 500], "crs": "EPSG:3413"}
        request = Request.parse(inputs, settings)
        folder = place / "subsets" / request.subset_id / "generation"
        data = b"x" * size
        (folder / "pairs.zarr/0").write_bytes(data)
        sha256 = hashlib.sha256(data).hexdigest()
        record = {"files": {"pairs.zarr/0": {"size": size, "sha256": sha256}}}
        (folder / "provenance.json").write_bytes(json.dumps(record).encode())
        with writing(database) as connection:
            put_subset(
                connection, id=request.subset_id, request_key=request.key,
                request=json.dumps(request.to_inputs()), generation="generation", sources="[]",
                size=size, pinned=pinned, last_used=datetime.now(UTC) - timedelta(hours=hours),
            )  # fmt: skip
        return request.subset_id

    return make


def test_what_is_open_in_any_process_stays(
    database: Engine,
    small: Settings,
    stored: Callable[..., str],
    url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(eviction, "_kept", set())
    monkeypatch.setattr(eviction, "_touched", {})
    place = BucketPath.parse(url)
    opened, idle = stored(1, 400, 9), stored(2, 400, 8)
    (place / "subsets" / opened / "before/pairs.zarr/0").write_bytes(b"1")
    (place / "subsets" / idle / "before/pairs.zarr/0").write_bytes(b"1")
    eviction.keep_used(database, opened)

    def used() -> bool:
        with reading(database) as connection:
            when = connection.scalar(select(subsets.c.last_used).where(subsets.c.id == opened))
        return bool(when and datetime.now(UTC) - when < timedelta(minutes=1))

    wait_for(used)
    monkeypatch.setattr(eviction, "_past", lambda instant: True)
    assert [gone.id for gone in eviction.evict(database, small, quota=0)] == [idle]
    names = ("before/pairs.zarr/0", "generation/pairs.zarr/0", "generation/provenance.json")
    left = {f"subsets/{opened}/{name}" for name in names}
    assert set(place.files()) == left
    later = datetime.now(UTC) - timedelta(days=2)
    with writing(database) as connection:  # superseded long ago
        connection.execute(update(subsets).values(created=later))
    eviction.evict(database, small, quota=1000)
    assert set(place.files()) == left - {f"subsets/{opened}/before/pairs.zarr/0"}


def test_eviction_and_damage(
    database: Engine, small: Settings, stored: Callable[..., str], url: str
) -> None:
    place = BucketPath.parse(url) / "subsets"
    limited = small.model_copy(update={"cache_quota": 1000})
    oldest, pinned, newest = stored(1, 400, 9), stored(2, 400, 8, pinned=True), stored(3, 400, 7)
    assert [gone.id for gone in eviction.evict(database, limited)] == [oldest]
    assert {name.split("/")[0] for name in place.files()} == {pinned, newest}
    assert eviction.evict(database, limited) == []
    (place / pinned / "generation/pairs.zarr/0").write_bytes(b"y" * 400)
    (place / newest / "generation/pairs.zarr").remove()
    found = {one.id: one.damage for one in eviction.verify(database, limited)}
    assert found[pinned] == ("pairs.zarr/0: its content is not what was written",)
    assert found[newest] == ("pairs.zarr/0: No such file or directory",)
    (place / pinned / "generation/provenance.json").write_bytes(b"{")
    [checked] = eviction.verify(database, limited, [pinned])
    assert "provenance.json" in checked.damage[0]
    job = eviction.mend(database, limited, newest)
    assert job.living
    jobs.dismiss(database, job.id)
    eviction.pin(database, pinned, False)
    assert eviction.remove(database, limited, pinned).size == 400
    assert {name.split("/")[0] for name in place.files()} == {newest}


def test_orphans_are_swept(
    database: Engine,
    small: Settings,
    stored: Callable[..., str],
    url: str,
    asked: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = BucketPath.parse(url)
    kept = stored(1, 10)
    job = jobs.submit(database, asked)
    folder = place / "subsets" / asked.subset_id
    (folder / "20260101T000000000000Z-deadbeef" / "pairs.zarr/vx/c/0").write_bytes(b"1")
    (folder / f"20260101T000000000000Z-{job.id[:8]}" / "pairs.zarr/vx/c/0").write_bytes(b"1")
    (place / "work" / job.id / "tiles/0.npz").write_bytes(b"1")
    (place / "work" / "of-a-job-that-ended" / "tiles/0.npz").write_bytes(b"1")
    before = set(place.files())
    eviction.evict(database, small)
    assert set(place.files()) == before, "they may be about to be published"
    monkeypatch.setattr(eviction, "_past", lambda instant: True)
    eviction.evict(database, small)
    gone = before - set(place.files())
    assert gone == {
        f"subsets/{asked.subset_id}/20260101T000000000000Z-deadbeef/pairs.zarr/vx/c/0",
        "work/of-a-job-that-ended/tiles/0.npz",
    }
    assert (place / "subsets" / kept / "generation").is_dir()


def test_files_of_a_bucket(url: str, tmp_path: Path) -> None:
    folder = BucketPath.parse(url)
    body = random.Random(1).randbytes(20_000_000)
    (tmp_path / "files" / "a").mkdir(parents=True)
    (tmp_path / "files" / "a" / "large").write_bytes(body)
    (tmp_path / "files" / "small").write_bytes(b"12")
    files = [path for path in (tmp_path / "files").rglob("*") if path.is_file()]
    upload(tmp_path / "files", files, folder)
    assert {name: about.size for name, about in folder.files().items()} == {
        "a/large": len(body),
        "small": 2,
    }
    assert (folder / "a/large").digest() == (len(body), hashlib.sha256(body).hexdigest())
    (folder / "a/large").download(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == body
    assert b"".join((folder / "a/large").blocks(10, 9_000_000)) == body[10:9_000_000]
    assert [each.name for each in folder.folders()] == ["a"]
    assert (folder / "a").is_dir()
    assert (folder / "a").exists()
    assert (folder / "small").exists()
    assert not (folder / "smal").exists()
    for missing in (folder / "none", folder / "a"):
        with pytest.raises(FileNotFoundError, match="is not there"):
            missing.read_bytes()
    with pytest.raises(FileExistsError):
        (folder / "small").write_new(b"3")
    (folder / "new").write_new(b"3")
    assert (folder / "new").read_bytes() == b"3"
    folder.remove(["none", "new"])
    folder.remove()
    assert folder.files() == {}


def test_who_is_not_there_is_told_at_the_door(
    engine: Engine, small: Settings, asked: Request
) -> None:
    with pytest.raises(NotFoundError):
        open_stored(engine, small, asked.subset_id, "pairs")


def test_drafts_know_their_generations() -> None:
    assert drafts.made_by("20260101T000000000000Z-0123abcd", "0123abcd-1111-2222")
    assert not drafts.made_by("20260101T000000000000Z-0123abcd", "0123abce-1111-2222")
