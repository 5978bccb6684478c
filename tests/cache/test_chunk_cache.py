"""The chunks on disk: kept whole or not at all, within the quota, by any number of processes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firnline.cache.chunk_cache import ChunkCache, open_chunk_cache
from firnline.chunks import Kept
from firnline.settings import Settings

MB = 1_000_000


def put(cache: ChunkCache, key: str, what: Kept) -> None:
    """Keep it, and see it written."""
    cache.write(key, what)
    cache.flush()


def kept(data: bytes, etag: str | None = '"e"', version: str | None = '"v"') -> Kept:
    return Kept(data, etag, version)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "usage"]


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def summed(folder: Path) -> int:
    return int((folder / "usage").read_text().split()[0])


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 999])
@pytest.mark.parametrize(("etag", "version"), [('"e"', '"v"'), (None, 'W/"ü"'), ('"e"', None)])
def test_what_is_written_is_read(
    tmp_path: Path, data: bytes, etag: str | None, version: str | None
) -> None:
    cache = ChunkCache(tmp_path / "chunks", 10 * MB)
    assert cache.read("https://host/a/b#0+5") is None
    put(cache, "https://host/a/b#0+5", Kept(memoryview(data), etag, version))
    put(cache, "https://host/a/c", kept(b"another"))
    assert cache.read("https://host/a/b#0+5") == Kept(data, etag, version)
    # another process, as it were
    assert ChunkCache(tmp_path / "chunks", MB).read("https://host/a/b#0+5") == Kept(
        data, etag, version
    )
    put(cache, "https://host/a/b#0+5", kept(b"newer"))
    assert cache.read("https://host/a/b#0+5") == kept(b"newer")
    assert summed(tmp_path / "chunks") == used(tmp_path / "chunks")


@settings(max_examples=150)
@given(data=st.data())
def test_a_damaged_file_is_no_file(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Cut, longer, or with a byte changed anywhere: it is not there, and is written anew."""
    folder = tmp_path_factory.mktemp("chunks")
    cache = ChunkCache(folder, 10 * MB)
    put(cache, "key", kept(bytes(range(200))))
    (path,) = files(folder)
    whole = path.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["cut", "longer", "changed"]))
    if how == "cut":
        path.write_bytes(whole[:at])
    elif how == "longer":
        path.write_bytes(whole + data.draw(st.binary(min_size=1, max_size=9)))
    else:
        wrong = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[at]))
        path.write_bytes(whole[:at] + bytes([wrong]) + whole[at + 1 :])
    assert cache.read("key") is None
    put(cache, "key", kept(b"again"))
    assert cache.read("key") == kept(b"again")


def test_anothers_file_is_not_read(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, 10 * MB)
    put(cache, "one", kept(b"1"))
    (path,) = files(tmp_path)
    other = cache._path("two")
    other.parent.mkdir(exist_ok=True)
    path.rename(other)
    assert cache.read("two") is None


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, MB)
    for n in range(20):
        put(cache, str(n), kept(bytes(40_000)))
        os.utime(cache._path(str(n)), (1_000_000 + n, 1_000_000 + n))
    for n in (0, 3, 7):
        assert cache.read(str(n)) is not None  # used now
    for n in range(20, 28):  # 28 x 40 kB is more than the quota
        put(cache, str(n), kept(bytes(40_000)))
    left = {n for n in range(28) if cache.read(str(n)) is not None}
    assert {0, 3, 7, *range(20, 28)} <= left
    gone = sorted(set(range(28)) - left)
    assert gone
    assert gone == [n for n in range(20) if n not in (0, 3, 7)][: len(gone)], "oldest first"
    assert used(tmp_path) <= MB


def test_the_quota_holds_all_the_time_and_the_folder_is_seldom_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    look = ChunkCache._make_room
    monkeypatch.setattr(ChunkCache, "_make_room", lambda self: looks.append(1) or look(self))
    cache = ChunkCache(tmp_path, MB)
    rng = random.Random(0)
    written = 0
    for n in range(1500):
        size = rng.randrange(20_000)
        put(cache, str(rng.randrange(600)), kept(bytes(size)))
        written += size
        if n % 50 == 0:
            assert used(tmp_path) <= MB
    assert used(tmp_path) <= MB
    assert summed(tmp_path) == used(tmp_path)
    # each look makes room for a sixteenth of the quota; one more is the first
    assert 2 < len(looks) <= 1 + written / (MB / 16)


def test_what_would_push_out_everything_else_is_not_kept(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, MB)
    put(cache, "small", kept(bytes(1000)))
    put(cache, "large", kept(bytes(MB // 2)))
    assert cache.read("large") is None
    assert cache.read("small") is not None


def test_what_was_not_summed_up_is_found_when_looked_for(tmp_path: Path) -> None:
    """A process that was killed between its file and the sum; files of no one; a damaged sum."""
    cache = ChunkCache(tmp_path, MB)
    for n in range(15):
        put(cache, str(n), kept(bytes(50_000)))
    abandoned = [tmp_path / "ab" / f"cd.{n}.1.partial" for n in range(2)]
    abandoned[0].parent.mkdir(exist_ok=True)
    for path in abandoned:
        path.write_bytes(bytes(500_000))
    os.utime(abandoned[0], (1_000_000, 1_000_000))
    (tmp_path / "usage").write_text("-5 rubbish")
    put(cache, "next", kept(bytes(50_000)))
    assert [path.exists() for path in abandoned] == [False, True]
    assert summed(tmp_path) == used(tmp_path) - 500_000
    # a sum that is wrong, but looks right, is put right a day later
    (tmp_path / "usage").write_text(f"0 {time.time() - 90_000:.0f}")
    put(cache, "one more", kept(bytes(1000)))
    assert summed(tmp_path) == used(tmp_path) - 500_000


class TestDisk:
    def test_a_full_one_is_no_error(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache = ChunkCache(tmp_path, 10 * MB)
        put(cache, "before", kept(b"before"))
        real = os.writev

        def full(descriptor: int, parts: Any) -> int:
            return real(descriptor, [parts[0]])  # and no more

        monkeypatch.setattr(os, "writev", full)
        for n in range(3):
            put(cache, str(n), kept(b"after"))
            assert cache.read(str(n)) is None
        assert cache.read("before") == kept(b"before")
        monkeypatch.undo()
        assert len(files(tmp_path)) == 1, "nothing half written is left"
        put(cache, "0", kept(b"after"))
        assert cache.read("0") == kept(b"after")

    def test_a_folder_that_can_not_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        cache = ChunkCache(tmp_path / "file" / "chunks", 10 * MB)
        put(cache, "key", kept(b"x"))
        assert cache.read("key") is None


def test_no_quota_no_cache(tmp_path: Path) -> None:
    off = Settings(data_dir=tmp_path, chunk_cache_quota=0, _env_file=None)  # type: ignore[call-arg]
    assert open_chunk_cache(off) is None
    on = off.model_copy(update={"chunk_cache_quota": 10 * MB})
    cache = open_chunk_cache(on)
    assert cache is not None
    assert open_chunk_cache(on) is cache, "one in a process"
    assert list(tmp_path.iterdir()) == []


def test_one_at_a_time_at_a_key(tmp_path: Path) -> None:
    cache = ChunkCache(tmp_path, 10 * MB)
    inside: dict[str, int] = {"a": 0, "b": 0}
    most = dict(inside)
    both = threading.Event()
    lock = threading.Lock()

    def enter(n: int) -> None:
        key = "ab"[n % 2]
        with cache.alone(key):
            with lock:
                inside[key] += 1
                most[key] = max(most[key], inside[key])
                if all(inside.values()):
                    both.set()
            time.sleep(0.002)
            with lock:
                inside[key] -= 1

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(enter, range(200)))
    assert most == {"a": 1, "b": 1}
    assert both.is_set(), "different keys don't wait for each other"
    assert cache._turns._locks == {}


_WRITER = """
import random, sys
from pathlib import Path
from firnline.cache.chunk_cache import ChunkCache
from firnline.chunks import Kept
cache = ChunkCache(Path(sys.argv[1]), 2_000_000)
rng = random.Random(int(sys.argv[2]))
print("ready", flush=True)
for _ in range(int(sys.argv[3])):
    number = rng.randrange(300)
    found = cache.read(str(number))
    if found is not None:
        assert bytes(found.data) == bytes([number % 256]) * (97 * number), "torn or mixed"
    cache.write(str(number), Kept(bytes([number % 256]) * (97 * number), None, "v"))
print("done", flush=True)
"""


def _writer(folder: Path, seed: int, rounds: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(folder), str(seed), str(rounds)],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_processes_share_the_folder_and_may_be_killed(tmp_path: Path) -> None:
    """Four write and read the same keys over the quota, one of them is killed at it."""
    writers = [_writer(tmp_path, seed, 400) for seed in range(3)]
    victim = _writer(tmp_path, 3, 10**9)
    for process in (*writers, victim):
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    time.sleep(0.2)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    for process in (*writers, victim):
        with process:
            assert process.stdout is not None
            assert process.stdout.read() == ("" if process is victim else "done\n")
    whole = [path for path in files(tmp_path) if path.suffix != ".partial"]
    assert len(files(tmp_path)) - len(whole) <= 1, "what the killed one was at"
    (tmp_path / "usage").write_text("0 0")  # a day later: the killed one did not sum all up
    cache = ChunkCache(tmp_path, 2_000_000)
    cache.write("one more", Kept(b"", "etag", None))
    cache.flush()
    whole = [path for path in files(tmp_path) if path.suffix != ".partial"]
    assert sum(path.stat().st_size for path in whole) <= 2_000_000
    found = {n: cache.read(str(n)) for n in range(300)}
    assert sum(one is not None for one in found.values()) == len(whole) - 1 > 50
