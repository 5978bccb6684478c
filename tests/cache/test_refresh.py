"""A cube that grows under a subset: what becomes stale, what is fetched, what readers see."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from sqlalchemy import Engine

from firnline.cache import jobs, worker
from firnline.cache.eviction import mend
from firnline.cache.opening import ask, subset_place
from firnline.cache.refresh import mark_stale, refresh
from firnline.cache.request import Request
from firnline.database import connect, get_item, migrate, reading
from firnline.indexer.cubes import deepen
from firnline.indexer.harvest import harvest
from firnline.indexer.mirror import MirrorServer
from firnline.indexer.sample import CubeRecord, Mirror, write_mirror
from firnline.settings import Settings

TIME_CHUNK = 40
PAIRS, MORE = 60, 15


@dataclass
class Place:
    """A mirror of two cubes of one's own, and an installation that knows it."""

    server: MirrorServer
    mirror: Mirror
    settings: Settings
    engine: Engine

    @property
    def cube(self) -> CubeRecord:
        """The one that grows."""
        return self.mirror.cubes[1]

    def request(self, **inputs: Any) -> Request:
        asked = {"bbox": self.mirror.aoi, "crs": "EPSG:3413", "strain": {"length_scale": 480}}
        return Request.parse({**asked, **inputs}, self.settings)

    def harvest(self) -> list[str]:
        """Harvest deep; the subsets that are stale by it."""
        harvest(self.engine, self.settings, [self.mirror.catalog_url], mosaics=False, deep=True)
        deepen(self.engine, self.settings)
        return mark_stale(self.engine)

    def other(self, folder: Path, **more: Any) -> Place:
        """Another installation."""
        settings = self.settings.model_copy(update={"data_dir": folder, **more})
        engine = connect(settings.database)
        migrate(engine)
        place = Place(self.server, self.mirror, settings, engine)
        place.harvest()
        return place

    def grow(self) -> None:
        """Append pairs to the cube as the producers do: its last chunks in time are rewritten."""
        folder = self.mirror.root / self.cube.path
        group = zarr.open_group(folder, mode="r+", use_consolidated=False)
        for name, array in group.arrays():
            if not array.shape or array.attrs["_ARRAY_DIMENSIONS"][0] != "mid_date":
                continue
            rows = np.asarray(array[:MORE])
            if name == "granule_url":
                rows = np.char.replace(rows, ".nc", "_later.nc")
            elif name in ("mid_date", "acquisition_date_img1", "acquisition_date_img2"):
                rows = rows + 0.25
            array.append(rows)
        zarr.consolidate_metadata(folder)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("TIME_CHUNK", "TIME_CHUNK_1D"):
        monkeypatch.setattr(f"firnline.indexer.sample_cube.{name}", TIME_CHUNK)
    with MirrorServer(tmp_path / "mirror") as server:
        mirror = write_mirror(
            tmp_path / "mirror", server.url, pairs=PAIRS, cubes=("nw", "ne"), mosaics=False
        )
        settings = Settings(
            data_dir=tmp_path / "data", allowed_sources=(f"{server.url}/",), _env_file=None
        )  # type: ignore[call-arg]
        engine = connect(settings.database)
        migrate(engine)
        place = Place(server, mirror, settings, engine)
        place.harvest()
        yield place
        engine.dispose()


def finish(place: Place, job: jobs.Job | None) -> Path:
    assert job is not None
    done = worker.finish(place.engine, place.settings, job)
    assert (done.status, done.message) == ("successful", "done")
    assert done.subset is not None
    return subset_place(place.engine, place.settings, done.subset)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the provenance, which says when, how long and at what cost."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "provenance.json"
    }


def item(place: Place, id: str) -> dict[str, Any]:
    with reading(place.engine) as connection:
        content = get_item(connection, "subsets", id)
    assert content is not None
    found: dict[str, Any] = json.loads(content)
    return found


def velocity_requests(place: Place) -> list[tuple[str, str, int]]:
    """(cube, chunk, status) of what was asked for of the 3-D variables."""
    found = []
    for request in place.server.requests:
        folder, _, chunk = request.path.lstrip("/").rpartition("/")
        cube, _, name = folder.rpartition("/")
        if name in ("vx", "vy", "v_error") and not chunk.startswith("."):
            found.append((cube, chunk, request.status))
    return found


def test_a_grown_cube_costs_its_changed_chunks(place: Place, tmp_path: Path) -> None:
    request = place.request()
    before = finish(place, ask(place.engine, place.settings, request))
    old = contents(before)
    first = velocity_requests(place)
    assert place.harvest() == []
    assert refresh(place.engine, place.settings, request.subset_id) is None

    place.grow()
    assert place.harvest() == [request.subset_id]
    assert place.harvest() == [], "it's said once"
    assert item(place, request.subset_id)["properties"]["firnline:stale"] is True
    assert subset_place(place.engine, place.settings, request.subset_id) == before

    place.server.clear()
    job = ask(place.engine, place.settings, request)
    assert job.living, "what is stale is made anew"
    after = finish(place, job)
    assert after != before
    assert contents(before) == old, "who has it open reads on"
    asked = velocity_requests(place)
    grown = [(chunk, status) for cube, chunk, status in asked if cube == place.cube.path]
    assert len(grown) == len(asked), "the other cube is what it was"
    assert {chunk[0] for chunk, status in grown if status == 304} == {"0"}
    assert {chunk[0] for chunk, status in grown if status == 200} == {"1"}
    mine = [chunk for cube, chunk, _ in first if cube == place.cube.path]
    assert sorted(chunk for chunk, _ in grown) == sorted(mine), "each chunk once"

    stored = xr.open_zarr(after / "pairs.zarr")
    assert stored.sizes["mid_date"] == xr.open_zarr(before / "pairs.zarr").sizes["mid_date"] + MORE
    assert item(place, request.subset_id)["properties"]["firnline:stale"] is False
    other = place.other(tmp_path / "other", chunk_cache_quota=0)
    assert contents(after) == contents(finish(other, ask(other.engine, other.settings, request)))
    other.engine.dispose()


@pytest.fixture
def long_ago(place: Place) -> None:
    """The mirror was written well before anything was read of it, as those of the producers are."""
    for path in place.mirror.root.rglob("*"):
        os.utime(path, (1.6e9, 1.6e9))


@pytest.mark.usefixtures("long_ago")
@pytest.mark.parametrize(
    "more", [{}, {"variables": ["v", "vx"], "format": "v2", "composite": None, "strain": False}]
)
def test_without_a_chunk_cache_the_generation_before_has_what_did_not_change(
    place: Place, tmp_path: Path, more: dict[str, Any]
) -> None:
    place.settings = place.settings.model_copy(update={"chunk_cache_quota": 0})
    request = place.request(**more)
    finish(place, ask(place.engine, place.settings, request))
    place.grow()
    assert place.harvest() == [request.subset_id]
    place.server.clear()
    after = finish(place, ask(place.engine, place.settings, request))
    asked = velocity_requests(place)
    assert {cube for cube, _, _ in asked} == {place.cube.path}, "the other one is what it was"
    assert {(chunk[0], status) for _, chunk, status in asked} == {("0", 304), ("1", 200)}
    names = {"vx", "vy", "v_error"}.intersection(request.variables)
    assert set(Counter(asked).values()) == {len(names)}, "each chunk of each variable once"
    other = place.other(tmp_path / "other")
    assert contents(after) == contents(finish(other, ask(other.engine, other.settings, request)))
    other.engine.dispose()


@pytest.mark.usefixtures("long_ago")
def test_a_damaged_generation_is_not_handed_on(place: Place, tmp_path: Path) -> None:
    place.settings = place.settings.model_copy(update={"chunk_cache_quota": 0})
    request = place.request(variables=["vx"], composite=None, strain=False, format="v2")
    before = finish(place, ask(place.engine, place.settings, request))
    chunk = next(path for path in (before / "pairs.zarr" / "vx").iterdir() if path.name[0] == "0")
    chunk.write_bytes(chunk.read_bytes()[:-9] + bytes(9))
    place.server.clear()
    after = finish(place, mend(place.engine, place.settings, request.subset_id))
    assert {status for _, _, status in velocity_requests(place)} == {200}
    other = place.other(tmp_path / "other")
    assert contents(after) == contents(finish(other, ask(other.engine, other.settings, request)))
    other.engine.dispose()


@pytest.mark.usefixtures("long_ago")
def test_a_chunk_that_was_rewritten_in_place_is_not_taken_from_before(
    place: Place, tmp_path: Path
) -> None:
    """The same pairs by the same names, and others of their values: only the source knows."""
    place.settings = place.settings.model_copy(update={"chunk_cache_quota": 0})
    request = place.request(variables=["vx"], composite=None, strain=False)
    before = finish(place, ask(place.engine, place.settings, request))
    group = zarr.open_group(place.mirror.root / place.cube.path, mode="r+", use_consolidated=False)
    values = np.asarray(group["vx"][:])
    group["vx"][:] = np.where(values == -32767, values, values + 1)
    place.grow()
    assert place.harvest() == [request.subset_id]
    after = finish(place, ask(place.engine, place.settings, request))
    other = place.other(tmp_path / "other")
    assert contents(after) == contents(finish(other, ask(other.engine, other.settings, request)))
    assert contents(after).keys() == contents(before).keys()
    old, new = (xr.open_zarr(f / "pairs.zarr", decode_cf=False) for f in (before, after))
    same = np.isin(new.granule, old.granule)
    assert (new.vx.values[same] != old.vx.values).any()
    other.engine.dispose()


def test_refresh_asks_the_sources_themselves(place: Place) -> None:
    """Without a harvest; and readers keep what they have until there is something new."""
    request = place.request(composite=None, strain=False)
    before = finish(place, ask(place.engine, place.settings, request))
    place.grow()
    assert ask(place.engine, place.settings, request).status == "successful", "not known yet"
    job = refresh(place.engine, place.settings, request.subset_id)
    assert job is not None
    again = refresh(place.engine, place.settings, request.subset_id)
    assert again is not None
    assert again.id == job.id
    assert item(place, request.subset_id)["properties"]["firnline:stale"] is True
    assert subset_place(place.engine, place.settings, request.subset_id) == before
    after = finish(place, job)
    assert after != before
    assert refresh(place.engine, place.settings, request.subset_id) is None


def test_what_the_catalog_knew_before_says_nothing(place: Place) -> None:
    """A cube that grew between its harvest and the materialisation: the subset is the newer."""
    place.grow()
    request = place.request(composite=None, strain=False)
    finish(place, ask(place.engine, place.settings, request))
    assert mark_stale(place.engine) == []
    assert place.harvest() == []
    assert refresh(place.engine, place.settings, request.subset_id) is None
