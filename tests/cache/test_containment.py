"""Requests inside a subset: what lies in what, and that the answer is the sources' own."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, update

from firnline.cache import jobs, worker
from firnline.cache.containment import contains, find_container
from firnline.cache.opening import ask, subset_place
from firnline.cache.planning import _table
from firnline.cache.request import Request
from firnline.cache.sources import OpenCube
from firnline.cache.stitch import PairTable
from firnline.database import connect, get_item, reading, writing
from firnline.indexer.cubes import deepen
from firnline.settings import Settings
from firnline.tables import cubes, subsets

AREA = {"bbox": (0.0, 0.0, 1e4, 1e4), "crs": "EPSG:3413"}


def request(**inputs: Any) -> Request:
    return Request.parse({**AREA, **inputs}, Settings(_env_file=None))  # type: ignore[call-arg]


# --- which filters let through what -------------------------------------------------------

DAYS = st.integers(0, 12).map(lambda n: dt.date(2018, 1, 1) + dt.timedelta(days=30 * n))
OPEN = st.sampled_from(["..", None])


@st.composite
def intervals(draw: st.DrawFn) -> str:
    first, last = sorted([draw(DAYS), draw(DAYS)])
    return f"{draw(OPEN) or first}/{draw(OPEN) or last}"


FILTERS = st.fixed_dictionaries(
    {
        "datetime": intervals(),
        "satellites": st.lists(st.sampled_from(["L8", "L", "S2", "S2A", "S2B", "S1A"]), max_size=3),
        "dt_days": st.none()
        | st.tuples(st.integers(0, 40), st.integers(0, 40)).map(lambda two: tuple(sorted(two))),
        "max_error": st.none() | st.sampled_from([10, 20, 30]),
        "min_valid": st.none() | st.sampled_from([5, 50, 95]),
    }
)


def made_pairs() -> OpenCube:
    """Pairs with all sorts of dates, satellites and spans."""
    chance = np.random.default_rng(5)
    count = 3000
    dates = np.datetime64("2017-12-01", "us") + chance.integers(0, 430, count) * np.timedelta64(
        1, "D"
    )
    names = np.array(["L8", "L9", "S2A", "S2B", "S1A"])[chance.integers(0, 5, (2, count))]

    per_pair: dict[str, Any] = {"date_dt": chance.integers(0, 45, count).astype("f4")}
    per_pair["roi_valid_percentage"] = chance.integers(0, 101, count).astype("f4")
    for name in ("vx_error", "vy_error"):
        per_pair[name] = chance.integers(0, 40, count).astype("f4")
    for n, image in enumerate(names, start=1):
        per_pair[f"mission_img{n}"] = np.array([name[0] for name in image])
        per_pair[f"satellite_img{n}"] = np.array([name[1:] for name in image])
    cube: Any = SimpleNamespace(mid_date=dates, granule=dates, per_pair=per_pair)
    cube.layout = SimpleNamespace(arrays={name: SimpleNamespace(missing=0) for name in per_pair})
    found: OpenCube = cube
    return found


PAIRS = made_pairs()


def wanted(asked: Request) -> Any:
    table: PairTable = _table(asked, PAIRS)
    return table.wanted


@given(FILTERS, FILTERS)
def test_what_contains_has_all_pairs(one: dict[str, Any], other: dict[str, Any]) -> None:
    outer, inner = request(**one), request(**other)
    assert contains(outer, outer)
    if contains(outer, inner):
        assert not (wanted(inner) & ~wanted(outer)).any()


@given(FILTERS, st.data())
def test_what_is_narrower_is_contained(one: dict[str, Any], data: st.DataObject) -> None:
    """Not too careful either: each filter narrowed, or added where there is none."""
    outer = request(**one)
    first, last = (end if end == ".." else end[:10] for end in one["datetime"].split("/"))
    narrower = {
        "datetime": f"{'2018-01-01' if first == '..' else first}/{last}",
        "satellites": [n + "A" if n == "S2" else n for n in one["satellites"]][:1] or ["L8"],
        "dt_days": one["dt_days"] or (3, 5),
        "max_error": (one["max_error"] or 30) - 1,
        "min_valid": (one["min_valid"] or 0) + 1,
        "variables": ["vx", "vy"],
    }
    inner = request(
        **{**one, **{k: narrower[k] for k in data.draw(st.sets(st.sampled_from([*narrower])))}}
    )
    assert contains(outer, inner)


def test_what_was_not_stored_is_not_contained() -> None:
    assert not contains(request(pairs=False), request())
    assert not contains(request(), request(variables=["vx", "vy", "v"]))
    more = request(variables=["vx", "vy", "v", "v_error"])
    assert contains(more, request(composite="P1M", format="v2"))


# --- the answers ---------------------------------------------------------------------------

OUTER: dict[str, Any] = {
    "crs": "EPSG:3413", "variables": ["vx", "vy", "v_error"], "composite": None, "strain": False,
}  # fmt: skip


def run(engine: Engine, settings: Settings, asked: Request) -> Path:
    done = worker.finish(engine, settings, ask(engine, settings, asked))
    assert (done.status, done.message) == ("successful", "done")
    return subset_place(engine, settings, asked.subset_id)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "provenance.json"
    }


def links(engine: Engine, id: str) -> list[str]:
    with reading(engine) as connection:
        content = get_item(connection, "subsets", id)
    assert content is not None
    return [link["href"] for link in json.loads(content)["links"]]


@pytest.fixture
def outer(sample: Any, engine: Engine, settings: Settings) -> Request:
    """A subset across all four cubes."""
    asked = Request.parse({**OUTER, "bbox": sample.mirror.aoi}, settings)
    run(engine, settings, asked)
    sample.server.clear()
    return asked


def window(sample: Any, west: float, south: float, east: float, north: float) -> list[float]:
    """Part of the sample's area, by shares of its sides."""
    left, bottom, right, top = sample.mirror.aoi
    wide, high = right - left, top - bottom
    return [left + west * wide, bottom + south * high, left + east * wide, bottom + north * high]


@pytest.mark.parametrize(
    ("shares", "inputs"),
    [
        ((0.0, 0.0, 1.0, 1.0), {"composite": "P1Y", "strain": {"length_scale": 480}}),
        ((0.3, 0.1, 0.93, 0.77), {"datetime": "2018-03-01/2019-10-31", "variables": ["vx", "vy"],
                                  "composite": "all"}),
        ((0.6, 0.7, 0.9, 0.9), {"satellites": ["S2"], "dt_days": [0, 60], "format": "v2"}),
        ((0.55, 0.1, 0.56, 0.11), {"composite": "season"}),
    ],
)  # fmt: skip
def test_the_answer_is_the_sources_own(
    sample: Any,
    engine: Engine,
    settings: Settings,
    outer: Request,
    tmp_path: Path,
    shares: tuple[float, float, float, float],
    inputs: dict[str, Any],
) -> None:
    """Across cubes and in one, with pairs that only the other cubes have; no request is made."""
    asked = Request.parse({**OUTER, "bbox": window(sample, *shares), **inputs}, settings)
    small = settings.model_copy(update={"memory_limit": 1})  # several tiles
    folder = run(engine, small, asked)
    assert sample.server.requests == []
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["read_from"]["subset"] == outer.subset_id
    assert links(engine, asked.subset_id)[-1].endswith(f"/subsets/items/{outer.subset_id}")

    other = sample.settings(tmp_path / "other", memory_limit=1)
    apart = connect(other.database)
    expected = run(apart, other, asked)
    assert json.loads((expected / "provenance.json").read_text())["read_from"] is None
    assert contents(folder) == contents(expected)
    assert links(engine, asked.subset_id)[:-1] == links(apart, asked.subset_id)
    apart.dispose()


def test_one_from_another_from_another(
    sample: Any, engine: Engine, settings: Settings, outer: Request
) -> None:
    """What was itself answered from a subset answers for what lies in it."""
    middle = Request.parse({**OUTER, "bbox": window(sample, 0.2, 0.2, 0.8, 0.8)}, settings)
    run(engine, settings, middle)
    inner = Request.parse({**OUTER, "bbox": window(sample, 0.4, 0.4, 0.6, 0.6)}, settings)
    with writing(engine) as connection:
        connection.execute(
            update(subsets).where(subsets.c.id == outer.subset_id).values(stale=True)
        )
    folder = run(engine, settings, inner)
    assert sample.server.requests == []
    provenance = json.loads((folder / "provenance.json").read_text())
    assert provenance["read_from"]["subset"] == middle.subset_id


@pytest.mark.parametrize("why", ["stale", "beyond", "variable", "damaged", "itself"])
def test_what_can_not_answer_does_not(
    sample: Any, engine: Engine, settings: Settings, outer: Request, why: str
) -> None:
    inputs = {**OUTER, "bbox": window(sample, 0.4, 0.4, 0.6, 0.6)}
    if why == "stale":
        with writing(engine) as connection:
            connection.execute(update(subsets).values(stale=True))
    elif why == "beyond":
        inputs["bbox"] = window(sample, 0.4, 0.4, 1.02, 0.6)
    elif why == "variable":
        inputs["variables"] = ["vx", "v"]
    elif why == "damaged":
        shutil.rmtree(subset_place(engine, settings, outer.subset_id) / "cubes")
    elif why == "itself":
        inputs = {**OUTER, "bbox": sample.mirror.aoi}
    assert find_container(engine, settings, Request.parse(inputs, settings)) is None


def test_a_cube_that_a_deep_harvest_found_changed_is_asked(
    sample: Any, engine: Engine, settings: Settings, outer: Request
) -> None:
    """Though no one has marked the subset stale yet."""
    inner = Request.parse({**OUTER, "bbox": window(sample, 0.4, 0.4, 0.6, 0.6)}, settings)
    assert deepen(engine, settings).failed == 0
    assert find_container(engine, settings, inner) is not None
    with writing(engine) as connection:
        connection.execute(update(cubes).values(etag='"another"'))
    assert find_container(engine, settings, inner) is None


def test_a_subset_that_goes_away_while_it_is_read(
    sample: Any,
    engine: Engine,
    settings: Settings,
    outer: Request,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Zarr makes missing values of chunks that are gone: the job begins anew, from the cubes."""
    folder = subset_place(engine, settings, outer.subset_id)
    asked = Request.parse({**OUTER, "bbox": window(sample, 0.4, 0.4, 0.6, 0.6)}, settings)
    from firnline.cache.containment import StoredTiles

    real = StoredTiles._copy

    def gone(self: StoredTiles, *arguments: Any) -> None:
        if folder.exists():
            shutil.rmtree(folder)
        real(self, *arguments)

    monkeypatch.setattr(StoredTiles, "_copy", gone)
    done = run(engine, settings, asked)
    assert json.loads((done / "provenance.json").read_text())["read_from"] is None
    assert sample.server.requests != []
    assert jobs.recent(engine)[0].attempt == 1
