"""The store within its quota: who goes, who stays, what is left over, what is damaged."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as example_settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select, update

from firnline.cache import eviction, jobs, worker
from firnline.cache.request import Request
from firnline.cache.store import files
from firnline.database import get_item, put_subset, reading, writing
from firnline.errors import ConflictError, NotFoundError
from firnline.locks import alone
from firnline.settings import Settings
from firnline.tables import subsets

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
Make = Callable[..., str]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, cache_quota=1000, _env_file=None)  # type: ignore[call-arg]


@pytest.fixture
def make(database: Engine, settings: Settings) -> Make:
    """Stores a subset of so many bytes that was used so many hours ago."""

    def made(n: int, size: int = 400, hours: float = 5.0, *, pinned: bool = False) -> str:
        inputs = {"bbox": [n * 1000, 0, n * 1000 + 500, 500], "crs": "EPSG:3413"}
        request = Request.parse(inputs, settings)
        folder = settings.cache_dir / "subsets" / request.subset_id / "generation"
        (folder / "pairs.zarr").mkdir(parents=True)
        (folder / "pairs.zarr" / "0").write_bytes(b"x" * size)
        record = {path: stored._asdict() for path, stored in files(folder)}
        (folder / "provenance.json").write_text(json.dumps({"files": record}))
        with writing(database) as connection:
            put_subset(
                connection,
                id=request.subset_id,
                request_key=request.key,
                request=json.dumps(request.to_inputs()),
                generation="generation",
                sources="[]",
                size=size,
                pinned=pinned,
                last_used=datetime.now(UTC) - timedelta(hours=hours),
            )
        return request.subset_id

    return made


@pytest.fixture
def _aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are old enough at once (when they were made can't be set)."""
    monkeypatch.setattr(eviction, "_old", lambda folder: True)


def stored(engine: Engine, settings: Settings) -> set[str]:
    """Subsets that readers are sent to; all and only their files are there."""
    with reading(engine) as connection:
        rows = set(connection.scalars(select(subsets.c.id)))
    folders = (settings.cache_dir / "subsets").glob("*/*/provenance.json")
    assert rows == {path.parts[-3] for path in folders}
    return rows


def test_the_least_recently_used_go_until_the_rest_fits(
    database: Engine, settings: Settings, make: Make
) -> None:
    oldest, middle, newest = make(1, hours=9), make(2, hours=7), make(3, hours=8)
    assert eviction.evict(database, settings) == [eviction.Removed(oldest, 400)]
    assert stored(database, settings) == {middle, newest}
    assert eviction.evict(database, settings) == []
    assert [gone.id for gone in eviction.evict(database, settings, quota=400)] == [newest]
    assert [gone.id for gone in eviction.evict(database, settings, quota=0)] == [middle]
    assert stored(database, settings) == set()


def test_no_quota_is_no_limit(database: Engine, settings: Settings, make: Make) -> None:
    ids = {make(n, size=10_000) for n in range(3)}
    unlimited = settings.model_copy(update={"cache_quota": 0})
    assert eviction.evict(database, unlimited) == []
    assert stored(database, settings) == ids


def test_what_is_pinned_used_made_or_read_stays(
    database: Engine, settings: Settings, make: Make
) -> None:
    pinned, used, being_made, read, idle = (
        make(1, pinned=True), make(2, hours=0.9), make(3), make(4), make(5),
    )  # fmt: skip
    with reading(database) as connection:
        request = connection.scalar(select(subsets.c.request).where(subsets.c.id == being_made))
    jobs.submit(database, Request.parse(json.loads(request or ""), settings), refresh=True)
    folder = settings.cache_dir / "subsets" / read / "generation"
    script = (
        "import sys; from pathlib import Path; from firnline.cache.eviction import hold\n"
        "hold(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    reader = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    with reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "held\n"
        assert [gone.id for gone in eviction.evict(database, settings, quota=0)] == [idle]
        assert stored(database, settings) == {pinned, used, being_made, read}
        with pytest.raises(ConflictError, match="in use"):
            eviction.remove(database, settings, read)
        with pytest.raises(ConflictError, match="in use, or being made"):
            eviction.remove(database, settings, being_made)
        with pytest.raises(ConflictError, match=f"`firnline cache unpin {pinned}` first"):
            eviction.remove(database, settings, pinned)
        reader.kill()
    assert [gone.id for gone in eviction.evict(database, settings, quota=0)] == [read]
    eviction.pin(database, pinned, False)
    assert eviction.remove(database, settings, pinned).id == pinned
    assert eviction.remove(database, settings, used).id == used, "when told so, at once"
    assert stored(database, settings) == {being_made}


@example_settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    found=st.lists(
        st.tuples(st.integers(0, 500), st.integers(0, 12), st.booleans()), min_size=1, max_size=6
    ),
    quota=st.integers(0, 1500),
)
def test_no_more_goes_than_must(
    database: Engine,
    settings: Settings,
    make: Make,
    found: list[tuple[int, int, bool]],
    quota: int,
) -> None:
    """Against the rule by itself: of those that may go, the longest unused first."""
    with writing(database) as connection:
        connection.execute(delete(subsets))
    for path in (settings.cache_dir / "subsets").glob("*/generation"):
        path.rename(settings.data_dir / f"gone-{os.urandom(8).hex()}")
    rows = [
        (make(n, size, hours=hours + 0.5 - n * 1e-3, pinned=pinned), size, hours - n * 1e-3, pinned)
        for n, (size, hours, pinned) in enumerate(found)
    ]
    left = sum(size for _, size, _, _ in rows)
    expected = []
    for id, size, hours, pinned in sorted(rows, key=lambda row: -row[2]):
        if left > quota and hours > 0.4 and not pinned:
            expected.append(id)
            left -= size
    assert [gone.id for gone in eviction.evict(database, settings, quota=quota)] == expected
    assert stored(database, settings) == {row[0] for row in rows} - set(expected)


def test_the_item_goes_with_it(sample: Any, tmp_path: Path) -> None:
    settings = sample.settings(tmp_path / "data")
    from firnline.database import connect

    engine = connect(settings.database)
    inputs = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "variables": ["vx"], "composite": None,
              "strain": False}  # fmt: skip
    job = worker.finish(engine, settings, jobs.submit(engine, Request.parse(inputs, settings)))
    assert job.subset is not None, job.message
    (checked,) = eviction.verify(engine, settings)
    assert (checked.id, checked.damage) == (job.subset, ())
    assert checked.files > 10
    eviction.remove(engine, settings, job.subset)
    with reading(engine) as connection:
        assert get_item(connection, "subsets", job.subset) is None
    again = worker.finish(engine, settings, jobs.submit(engine, Request.parse(inputs, settings)))
    assert (again.status, again.subset) == ("successful", job.subset)
    assert again.message == "done", "it was made anew"
    engine.dispose()


@pytest.mark.usefixtures("_aged")
def test_orphans_are_swept_and_nothing_else(
    database: Engine, settings: Settings, make: Make
) -> None:
    id = make(1)
    job = jobs.submit(database, Request.parse({"bbox": [0, 0, 9, 9], "crs": "EPSG:3413"}, settings))
    root = settings.cache_dir
    for orphan in (
        root / "subsets" / id / "older", root / "subsets" / "subset-gone" / "g",
        root / "work" / "no-such-job" / "1", root / "work" / "trash-1" / "a",
    ):  # fmt: skip
        orphan.mkdir(parents=True)
        (orphan / "file").write_text("x")
    (root / "work" / job.id / "1").mkdir(parents=True)
    assert eviction.evict(database, settings) == []
    assert stored(database, settings) == {id}
    left = sorted(path.relative_to(root).as_posix() for path in root.glob("*/*/*"))
    assert left == [f"subsets/{id}/generation", f"work/{job.id}/1"]
    assert eviction.evict(database, settings) == []
    assert not (root / "subsets" / "subset-gone").exists()


def test_a_generation_that_was_just_moved_there_is_no_orphan(
    database: Engine, settings: Settings
) -> None:
    new = settings.cache_dir / "subsets" / "subset-new" / "generation"
    new.mkdir(parents=True)
    eviction.evict(database, settings)
    assert new.is_dir(), "its row is about to come"


def test_a_death_between_the_two_steps_leaves_an_orphan_only(
    database: Engine, settings: Settings, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = make(1)
    with monkeypatch.context() as patch:

        def die(*args: Any) -> None:
            raise SystemExit(9)

        patch.setattr(eviction, "_discard", die)
        with pytest.raises(SystemExit):
            eviction.remove(database, settings, id)
    with reading(database) as connection:
        assert connection.scalar(select(subsets.c.id)) is None
    folder = settings.cache_dir / "subsets" / id / "generation"
    assert folder.is_dir()
    monkeypatch.setattr(eviction, "_old", lambda folder: True)
    eviction.evict(database, settings)
    assert not folder.exists()


def test_one_at_a_time(database: Engine, settings: Settings) -> None:
    with alone(database, "eviction"), pytest.raises(ConflictError, match="another eviction"):
        eviction.evict(database, settings)


def test_damage_is_found_and_mended(database: Engine, settings: Settings, make: Make) -> None:
    good, bad, gone = make(1), make(2), make(3)
    folders = settings.cache_dir / "subsets"
    chunk = folders / bad / "generation" / "pairs.zarr" / "0"
    chunk.write_bytes(b"x" * 399 + b"y")
    (folders / gone / "generation" / "provenance.json").unlink()
    found = {each.id: each.damage for each in eviction.verify(database, settings)}
    assert found == {
        good: (),
        bad: ("pairs.zarr/0: its content is not what was written",),
        gone: ("provenance.json: No such file or directory",),
    }
    chunk.write_bytes(b"x" * 10)
    (short,) = eviction.verify(database, settings, [bad])
    assert short.damage == ("pairs.zarr/0: has 10 bytes, of 400",)
    job = eviction.mend(database, settings, bad)
    assert (job.status, job.living) == ("accepted", True)
    request = Request.parse(job.request, settings)
    assert request.subset_id == bad
    with reading(database) as connection:
        assert connection.scalar(select(subsets.c.stale).where(subsets.c.id == bad)) is True
    with pytest.raises(NotFoundError, match="no subset 'x'"):
        list(eviction.verify(database, settings, ["x"]))
    with pytest.raises(NotFoundError, match="no subset 'x'"):
        eviction.mend(database, settings, "x")


def test_a_use_counts_now_and_then(
    database: Engine, settings: Settings, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "_touched", {})
    id = make(1, hours=9)

    def last_used() -> datetime:
        with reading(database) as connection:
            found = connection.scalar(select(subsets.c.last_used))
        assert found is not None
        return found

    eviction.touch(database, id)
    first = last_used()
    assert datetime.now(UTC) - first < timedelta(minutes=1)
    with writing(database) as connection:
        connection.execute(update(subsets).values(last_used=NOW))
    eviction.touch(database, id)
    assert last_used() == NOW, "a use a moment ago was noted"


@pytest.fixture(autouse=True)
def _holds() -> Iterator[None]:
    yield
    assert eviction._held == {}, "a test of this module holds in other processes only"


def test_a_digest_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert list(files(tmp_path)) == [("a", (3, hashlib.sha256(b"abc").hexdigest()))]
