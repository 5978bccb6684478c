"""Materialising from sources that fail, change, move and overlap: the same result, or a reason."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from sqlalchemy import Engine

from firnline import web
from firnline.cache import jobs, worker
from firnline.cache.jobs import Job
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.database import connect, migrate
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import Fault, Faults, MirrorServer
from firnline.indexer.sample import Mirror, write_mirror
from firnline.settings import Settings

VARIABLES = ("vx", "vy")
VELOCITY = re.compile(r"\.zarr/v[xy]/")
KINDS = [
    Fault("status", status=429, retry_after=0),
    Fault("status", status=500),
    Fault("status", status=502),
    Fault("status", status=503, retry_after=1),
    Fault("cut"),
    Fault("reset"),
    Fault("short"),
    Fault("stall", seconds=1),
    Fault("hang", seconds=0),
    Fault("corrupt"),
]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_FIRST_WAIT", 0.002)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mirror]:
    """A mirror of both generations, its files to be copied, and what is in them."""
    root = tmp_path_factory.mktemp("made")
    return root, write_mirror(
        root, "http://mirror.example", pairs=40, mosaics=False, generation_22=True,
        cubes=("ne", "se"),
    )  # fmt: skip


@pytest.fixture
def server(made: tuple[Path, Mirror], tmp_path: Path) -> Iterator[MirrorServer]:
    """The mirror, served from a copy that tests may change."""
    root = tmp_path / "mirror"
    shutil.copytree(made[0], root)
    with MirrorServer(root) as server:
        catalog = root / "datacubes" / "catalog_v02.json"
        catalog.write_text(catalog.read_text().replace("http://mirror.example", server.url))
        yield server


def inputs(bbox: tuple[float, ...]) -> dict[str, Any]:
    return {
        "bbox": bbox, "crs": "EPSG:3413", "variables": VARIABLES, "composite": None,
        "strain": False,
    }  # fmt: skip


class Installation:
    """A catalog and a cache of its own."""

    def __init__(self, folder: Path, server: MirrorServer, **more: Any) -> None:
        given = {"allowed_sources": (f"{server.url}/",), "lease_seconds": 30.0} | more
        self.settings = Settings(data_dir=folder, _env_file=None, **given)
        self.server = server
        folder.mkdir(parents=True)
        self.engine = connect(self.settings.database)
        migrate(self.engine)
        catalog = server.root / "datacubes" / "catalog_v02.json"
        harvest(self.engine, self.settings, [str(catalog)], mosaics=False)
        server.clear()

    def job(self, bbox: tuple[float, ...]) -> Job:
        """Materialise, even if there is a subset of it."""
        request = Request.parse(inputs(bbox), self.settings)
        job = jobs.submit(self.engine, request, refresh=True)
        return worker.finish(self.engine, self.settings, job)

    def pairs(self, bbox: tuple[float, ...]) -> xr.Dataset:
        job = self.job(bbox)
        assert (job.status, job.message) == ("successful", "done")
        assert job.subset is not None
        self.folder = subset_place(self.engine, self.settings, job.subset)
        return xr.open_zarr(self.folder / "pairs.zarr", mask_and_scale=False).load()

    @property
    def fetched(self) -> dict[str, int]:
        counts: dict[str, int] = json.loads((self.folder / "provenance.json").read_text())[
            "fetched"
        ]
        return counts

    def asked(self) -> list[tuple[str, int]]:
        """Paths and statuses of what was asked of the server since the last time."""
        found = [(r.path, r.status) for r in self.server.requests]
        self.server.clear()
        return found


@pytest.fixture
def install(tmp_path: Path, server: MirrorServer) -> Iterator[Callable[..., Installation]]:
    installed: list[Installation] = []

    def install(**more: Any) -> Installation:
        installed.append(Installation(tmp_path / f"data{len(installed)}", server, **more))
        return installed[-1]

    yield install
    for one in installed:
        one.engine.dispose()


@pytest.fixture
def aoi(made: tuple[Path, Mirror]) -> tuple[float, float, float, float]:
    """Over the corner where two cubes of version 2 and that of 2.2 meet."""
    left, bottom, _, top = made[1].cubes[-1].bounds
    middle = (bottom + top) / 2
    return left - 2_500, middle - 2_900, left + 4_700, middle + 3_100


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_whatever_fails_the_result_is_the_same(
    install: Callable[..., Installation],
    server: MirrorServer,
    aoi: Any,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three in ten answers fail, of all requests, in one of ten ways each."""
    expected = install(chunk_cache_quota=0).pairs(aoi)
    # Here alone: on a busy machine an answer that is only late would be asked for twice.
    monkeypatch.setattr(web, "_STALL", 0.3)
    disturbed = install()
    plans = [
        # a wrong byte shows where there are checksums: in zlib, not in lz4, nor in JSON
        Faults(fault, rate=0.034, seed=100 * seed + n,
               match="*/datacubes/*/v?/*" if fault.kind == "corrupt" else "*")
        for n, fault in enumerate(KINDS)
    ]  # fmt: skip
    struck: Counter[str] = Counter()

    def faults(method: str, path: str, attempt: int) -> Fault | None:
        for plan in plans:
            if (fault := plan(method, path, attempt)) is not None:
                struck[f"{fault.kind} {fault.status}"] += 1
                return fault
        return None

    server.faults = faults
    got = disturbed.pairs(aoi)
    xr.testing.assert_identical(got, expected)
    assert len(struck) >= 8, struck
    assert sum(struck.values()) > 0.2 * len(server.requests)


class TestOverlappingAreas:
    def test_the_second_asks_only_for_what_the_first_had_not(
        self, install: Callable[..., Installation], aoi: Any
    ) -> None:
        left, bottom, right, top = aoi
        first = (left, bottom, right - 1_500, top - 1_000)
        second = (left + 1_000, bottom + 500, right, top)
        here = install()
        here.pairs(first)
        had = {path for path, status in here.asked() if status in (200, 206)}
        got = here.pairs(second)
        counts = here.fetched
        again = here.asked()
        metadata = {path for path, _ in again if path.endswith((".zmetadata", "zarr.json"))}
        assert len(metadata) == 3
        new = {path for path, status in again if status == 200} - metadata
        assert new
        assert not new & had
        shards = {path for path, status in again if status == 206}  # their new parts
        assert all("/timeseries/" in path for path in shards)
        assert not any("/granule_url/" in path or "/mid_date/" in path for path, _ in again)
        assert counts["reused"] > 50
        # everything once more in an empty installation
        fresh = install()
        xr.testing.assert_identical(got, fresh.pairs(second))
        whole = fresh.fetched
        assert counts["bytes"] < 0.6 * whole["bytes"]
        # of the bytes of both areas none came twice
        both = install()
        both.pairs((left, bottom, right, top))
        once = both.fetched["bytes"]
        assert counts["bytes"] <= once

    def test_none_is_asked_for_by_the_same_area(
        self, install: Callable[..., Installation], aoi: Any
    ) -> None:
        here = install()
        here.pairs(aoi)
        here.asked()
        here.pairs(aoi)
        assert {status for path, status in here.asked() if "/vx/" in path or "/vy/" in path} == {
            404  # those that are absent
        }
        assert here.fetched["bytes"] == 0

    def test_a_cube_that_was_updated_gives_only_the_chunks_that_changed(
        self, install: Callable[..., Installation], server: MirrorServer, aoi: Any
    ) -> None:
        here = install()
        before = here.pairs(aoi)
        for name in (".zmetadata", "zarr.json"):
            for path in server.root.rglob(f"*.zarr/{name}"):
                path.write_text(path.read_text() + " ")  # another ETag, as date_updated makes it
        chunk = next(server.root.glob("datacubes/*/*/*_X-165000_Y-2275000.zarr/vx/0.7.6"))
        chunk.write_bytes(chunk.with_name("0.7.5").read_bytes())
        here.asked()
        got = here.pairs(aoi)
        answers = Counter(status for path, status in here.asked() if "/vx/" in path)
        assert answers[304] > 20
        assert answers[200] == 1
        assert answers[206] == 0
        xr.testing.assert_identical(got.vy, before.vy)
        assert not (got.vx.values == before.vx.values).all()
        xr.testing.assert_equal(got.vx, install(chunk_cache_quota=0).pairs(aoi).vx)

    def test_two_at_once_in_one_process_download_each_chunk_once(
        self, install: Callable[..., Installation], server: MirrorServer, aoi: Any
    ) -> None:
        here = install()
        left, bottom, right, top = aoi
        server.latency = 0.01
        with ThreadPoolExecutor(2) as pool:
            areas = [(left, bottom, right, top - 600), (left, bottom + 600, right, top)]
            done = list(pool.map(here.job, areas))
        assert [job.status for job in done] == ["successful"] * 2
        came = Counter(path for path, status in here.asked() if status == 200)
        twice = {path for path, times in came.items() if times > 1}
        assert all(path.endswith((".zmetadata", "zarr.json")) for path in twice), twice

    def test_two_processes_at_once(
        self, install: Callable[..., Installation], server: MirrorServer, aoi: Any
    ) -> None:
        """Each chunk is downloaded twice at the most, by whoever had not seen the other's."""
        here = install()
        left, bottom, right, top = aoi
        areas = [(left, bottom, right, top - 600), (left, bottom + 600, right, top)]
        code = (
            "import sys, json; from firnline.settings import Settings; "
            "from firnline.cache import jobs, worker; from firnline.cache.request import Request; "
            "from firnline.database import connect; "
            "settings = Settings(**json.loads(sys.argv[1])); engine = connect(settings.database); "
            "request = Request.parse(json.loads(sys.argv[2]), settings); "
            "job = worker.finish(engine, settings, jobs.submit(engine, request)); "
            "sys.exit(job.message != 'done')"
        )
        given = {
            "data_dir": str(here.settings.data_dir),
            "allowed_sources": here.settings.allowed_sources,
        }
        running = [
            subprocess.Popen(
                [sys.executable, "-c", code, json.dumps(given), json.dumps(inputs(area))],
                stdout=subprocess.DEVNULL,
            )
            for area in areas
        ]  # fmt: skip
        assert [process.wait(120) for process in running] == [0, 0]
        came = Counter(path for path, status in here.asked() if status == 200)
        assert max(came.values()) <= 2
        for area in areas:
            xr.testing.assert_identical(here.pairs(area), install(chunk_cache_quota=0).pairs(area))
        here.asked()
        here.pairs(aoi)
        assert here.fetched["bytes"] == 0, "either process had it"

    def test_a_chunk_that_was_damaged_on_disk_comes_again(
        self, install: Callable[..., Installation], aoi: Any
    ) -> None:
        here = install()
        expected = here.pairs(aoi)
        chunks = sorted(
            path for path in (here.settings.data_dir / "chunks").rglob("*")
            if path.is_file() and path.stat().st_size > 3_000
        )  # fmt: skip
        for n, path in enumerate(chunks[:9]):
            whole = path.read_bytes()
            middle = len(whole) // 2
            path.write_bytes(
                whole[:middle] if n % 3 else whole[:middle] + b"\x00\x01" + whole[middle + 2 :]
            )
        here.asked()
        xr.testing.assert_identical(here.pairs(aoi), expected)
        assert 0 < len([p for p, status in here.asked() if status in (200, 206)]) <= 9 + 6

    def test_without_a_quota_nothing_is_kept(
        self, install: Callable[..., Installation], aoi: Any
    ) -> None:
        here = install(chunk_cache_quota=0)
        here.pairs(aoi)
        first = Counter(here.asked())
        here.pairs(aoi)
        assert Counter(here.asked()) == first
        assert not (here.settings.data_dir / "chunks").exists()


class AfterChunks:
    """Does something to the server's files when so many velocity chunks have been asked for."""

    def __init__(self, server: MirrorServer, number: int, then: Callable[[], None]) -> None:
        self.left, self.then = number, then
        self.lock = threading.Lock()
        server.faults = self

    def __call__(self, method: str, path: str, attempt: int) -> None:
        with self.lock:
            if VELOCITY.search(path):
                self.left -= 1
                if not self.left:
                    self.then()


class TestSourcesThatChange:
    @pytest.fixture
    def other(self, server: MirrorServer) -> Path:
        """The same cubes with other pairs in another order, ready to take their places."""
        first, second = server.root / "first", server.root / "second"
        write_mirror(
            second, server.url, pairs=40, mosaics=False, generation_22=True, cubes=("ne", "se"),
            seed=7,
        )  # fmt: skip
        first.mkdir()
        for name in ("datacubes", "timeseries"):
            (server.root / name).rename(first / name)
            (server.root / name).symlink_to(first / name)
        return second

    def swap(self, server: MirrorServer, other: Path) -> None:
        """Exchange the two at one go: at no moment there is none."""
        for name in ("datacubes", "timeseries"):
            here = server.root / name
            theirs = other if here.readlink().parent != other else other.with_name("first")
            aside = server.root / f"{name}.aside"
            aside.symlink_to(theirs / name)
            aside.replace(here)

    @pytest.mark.parametrize("at", [1, 30, 60])
    def test_a_cube_that_is_replaced_while_it_is_read_is_read_anew(
        self,
        install: Callable[..., Installation],
        server: MirrorServer,
        other: Path,
        aoi: Any,
        at: int,
    ) -> None:
        here = install(concurrency=4)
        fault = AfterChunks(server, at, lambda: self.swap(server, other))
        got = here.pairs(aoi)
        assert fault.left <= 0, "it was replaced"
        server.faults = None
        # neither the old one nor a mixture
        xr.testing.assert_identical(got, install(chunk_cache_quota=0).pairs(aoi))
        self.swap(server, other)
        assert got.granule.values.tolist() != install().pairs(aoi).granule.values.tolist()

    def test_one_that_never_rests_is_given_up(
        self, install: Callable[..., Installation], server: MirrorServer, other: Path, aoi: Any
    ) -> None:
        here = install()
        seen = []

        def again() -> None:
            seen.append(1)
            self.swap(server, other)
            fault.left = 60

        fault = AfterChunks(server, 60, again)
        job = here.job(aoi)
        assert job.status == "failed"
        assert "has changed while it was read" in job.message
        assert len(seen) >= 3
        assert not list((here.settings.cache_dir / "subsets").glob("*/*"))

    def test_one_that_goes_away_is_not_a_cube_without_data(
        self, install: Callable[..., Installation], server: MirrorServer, tmp_path: Path, aoi: Any
    ) -> None:
        here = install()
        expected = install(chunk_cache_quota=0).pairs(aoi)
        away = tmp_path / "away"
        away.mkdir()
        fault = AfterChunks(
            server, 60, lambda: (server.root / "datacubes").rename(away / "datacubes")
        )
        job = here.job(aoi)
        assert fault.left <= 0
        assert job.status == "failed"
        assert "has gone while it was read" in job.message
        assert not list((here.settings.cache_dir / "subsets").glob("*/*"))
        # when it is back, nothing of that is left
        (away / "datacubes").rename(server.root / "datacubes")
        server.faults = None
        xr.testing.assert_identical(here.pairs(aoi), expected)

    def test_it_is_noticed_before_a_tile_counts_as_done(
        self, install: Callable[..., Installation], server: MirrorServer, tmp_path: Path, aoi: Any,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        done: list[int] = []
        checkpoint = jobs.checkpoint

        def noted(engine: Engine, job: Job, tile: int, manifest: Any) -> None:
            done.append(tile)
            checkpoint(engine, job, tile, manifest)

        monkeypatch.setattr(jobs, "checkpoint", noted)
        here = install(memory_limit=1, concurrency=1, chunk_cache_quota=0)
        tiles = len(here.pairs(aoi).vx.encoding["shards"]) and len(done)
        assert tiles > 4
        done.clear()
        missing = tmp_path / "away"
        chunks = [path for path, _ in here.asked() if VELOCITY.search(path)]
        # chunks of shards, whose index was read, would be told missing; those of Zarr v2 are absent
        cubes = server.root / "datacubes"
        AfterChunks(server, len(chunks) // 2, lambda: cubes.rename(missing))
        assert here.job(aoi).status == "failed"
        # all chunks of the last of these tiles, and of those before, had been asked for
        assert 0 < len(done) <= tiles // 2

    def test_one_chunk_that_is_missing_is_missing_data(
        self, install: Callable[..., Installation], server: MirrorServer, aoi: Any
    ) -> None:
        expected = install().pairs(aoi)
        chunk = next(server.root.glob("datacubes/*/*/*_X-165000_Y-2275000.zarr/vx/0.7.6"))
        chunk.unlink()
        got = install().pairs(aoi)
        xr.testing.assert_identical(got.vy, expected.vy)
        differs = got.vx.values != expected.vx.values
        assert 0 < differs.any(axis=0).sum() <= 100
        assert (got.vx.values[differs] == -32767).all()


class TestRedirects:
    def test_chunks_within_the_allowed_sources(
        self, install: Callable[..., Installation], server: MirrorServer, aoi: Any
    ) -> None:
        expected = install(chunk_cache_quota=0).pairs(aoi)
        with MirrorServer(server.root) as other:
            server.faults = Faults(
                Fault("redirect", location=f"{other.url}{{path}}"), rate=0.5, match="*/v?/*"
            )
            here = install(allowed_sources=(f"{server.url}/", f"{other.url}/"))
            xr.testing.assert_identical(here.pairs(aoi), expected)
            assert other.requests

    def test_chunks_to_anywhere_else(
        self, install: Callable[..., Installation], server: MirrorServer, aoi: Any
    ) -> None:
        with MirrorServer(server.root) as other:
            location = f"{other.url}{{path}}"
            server.faults = Faults(Fault("redirect", location=location), rate=0.1, match="*/v?/*")
            job = install().job(aoi)
            assert job.status == "failed"
            assert f"sends elsewhere: {other.url}" in job.message
            assert "FIRNLINE_ALLOWED_SOURCES" in job.message
            assert other.requests == []


@pytest.mark.parametrize("bucket", ["public", "private"])
def test_cubes_in_buckets(
    install: Callable[..., Installation],
    server: MirrorServer,
    aoi: Any,
    s3_server: Any,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Read anonymously and signed, they give what they give over HTTP."""
    expected = install(chunk_cache_quota=0).pairs(aoi)
    s3_server.upload(server.root, bucket)
    for name, value in s3_server.credentials.items():
        monkeypatch.setenv(name, value)
    catalog = server.root / "datacubes" / "catalog_v02.json"
    catalog.write_text(catalog.read_text().replace(server.url, f"s3://{bucket}"))
    roots = (f"s3://{bucket}/",)
    here = install(allowed_sources=roots, signed_sources=roots if bucket == "private" else ())
    got = here.pairs(aoi)
    xr.testing.assert_identical(got, expected)
    assert here.asked() == [], "nothing of it came from the mirror"
    here.pairs(aoi)
    assert here.fetched["bytes"] == 0, "kept, however it was signed"
