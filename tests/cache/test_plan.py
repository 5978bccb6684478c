"""Plans over made-up cubes: carrying one out chunk by chunk equals plain slicing."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box

from firnline.cache.plan import Plan
from firnline.cache.planning import by_coverage, choose_crs, make_plan
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, OpenCube
from firnline.cache.stitch import fill, scatter
from firnline.cube import Array, Cube
from firnline.errors import (
    NoCoverageError,
    SourceCorruptError,
    SourceMissingError,
    TooLargeError,
)
from firnline.settings import Settings

SETTINGS = Settings(data_dir=Path("/nowhere"), _env_file=None)
MISSING = -32767
LEFT, TOP = -300_000.0, -2_000_000.0


@dataclass
class Made:
    """A cube and its values ``(pair, y, x)``."""

    cube: OpenCube
    values: np.ndarray[Any, Any]


def make_cube(
    name: str,
    corner: tuple[int, int],
    shape: tuple[int, int, int],
    chunks: tuple[int, int, int],
    granules: list[str],
    *,
    step: float = 120.0,
    etag: str = '"1"',
    variable: str = "vx",
    shift: tuple[float, float] = (0.0, 0.0),
) -> Made:
    """A cube whose first pixel is (row, column) `corner` of the lattice, or `shift` pixels off."""
    rng = np.random.default_rng(crc32(repr((name, corner, shape)).encode()))
    array = Array(variable, ("mid_date", "y", "x"), shape, chunks, np.dtype("i2"), None, None,
                  attributes={"missing_value": MISSING})  # fmt: skip
    time = Array("mid_date", ("mid_date",), shape[:1], shape[:1], np.dtype("f8"), None, None)
    layout = Cube(f"http://x/{name}", etag, {variable: array, "mid_date": time}, {})
    days = np.array([int(granule[1:]) // 2 for granule in granules])  # two granules share a date
    cube = OpenCube(
        id=name,
        crs="EPSG:3413",
        source=SimpleNamespace(url=f"http://x/{name}"),  # type: ignore[arg-type]
        layout=layout,
        x=LEFT + step * (corner[1] + shift[1] + 0.5 + np.arange(shape[2])),
        y=TOP - step * (corner[0] + shift[0] + 0.5 + np.arange(shape[1])),
        mid_date=np.datetime64("2018-01-01", "us") + days.astype("m8[D]"),
        granule=np.array(granules, "S8"),
        per_pair={},
    )
    return Made(cube, rng.integers(-99, 99, shape).astype("i2"))


def request(**inputs: Any) -> Request:
    base = {"crs": "EPSG:3413", "variables": ["vx"], "composite": None, "strain": False}
    return Request.parse({**base, **inputs}, SETTINGS)


def plan_of(asked: Request, made: list[Made], memory_limit: int = 1) -> Plan:
    cubes = [one.cube for one in made]
    return make_plan(asked, "EPSG:3413", cubes, memory_limit=memory_limit, max_bytes=10**12)


@dataclass
class Carried:
    """The store that a plan makes, the chunks that it read, and the values in conflict."""

    store: np.ndarray[Any, Any]
    used: set[tuple[int, str]]
    conflicts: int = 0


def carry_out(plan: Plan, made: list[Made]) -> Carried:
    """What a plan makes, chunk by chunk in plain numpy."""
    (variable,) = plan.request.variables
    done = Carried(np.full(plan.shape, 7777, "i2"), set())
    values_of = {one.cube.id: one.values for one in made}
    for tile in plan.tiles:
        target = np.full((plan.shape[0], *tile.shape), MISSING, "i2")
        for part in plan.parts(tile, variable):
            found = None if part.time is None else plan.resampling(tile, part.cube, variable)
            into = target
            if found is not None:
                pairs = len(plan.cubes[part.cube].mid_date)
                into = np.full((pairs, *(s.stop - s.start for s in found[1].window)), MISSING, "i2")
            for chunk in part.chunks:
                array = plan.cubes[chunk.cube].layout.variable(variable)
                whole = np.full(array.chunks, 555, "i2")  # a chunk on the edge has the full shape
                corner = [i * n for i, n in zip(chunk.index, array.chunks, strict=True)]
                window = tuple(slice(c, c + n) for c, n in zip(corner, array.chunks, strict=True))
                piece = values_of[plan.cubes[chunk.cube].id][window]
                whole[tuple(slice(n) for n in piece.shape)] = piece
                moves = plan.moves(chunk.cube, chunk.index[0], array.chunks[0])
                assert len(moves[0]), "a time chunk without a wanted pair is not read"
                done.used.add((chunk.cube, chunk.key))
                if found is not None:
                    scatter(into, whole, (moves[0], moves[0]), chunk.rows, chunk.columns)
                elif part.fills:
                    done.conflicts += fill(into, whole, moves, chunk.rows, chunk.columns, MISSING)
                else:
                    scatter(into, whole, moves, chunk.rows, chunk.columns)
            if found is not None:
                (rows, columns), resampling = found
                assert part.time is not None
                size = plan.cubes[part.cube].layout.variable(variable).chunks[0]
                pairs, layers = plan.moves(part.cube, part.time, size)
                made_of = resampling.scalars(into, MISSING)
                at = [
                    (slice(side.start - start, side.stop - start), slice(0, side.stop - side.start))
                    for side, start in ((rows, tile.rows.start), (columns, tile.columns.start))
                ]
                done.conflicts += fill(target, made_of, (pairs, layers), at[0], at[1], MISSING)
        done.store[:, tile.rows, tile.columns] = target
    return done


@settings(max_examples=80)
@given(data=st.data())
def test_carrying_out_a_plan_equals_slicing(data: st.DataObject) -> None:
    draw = data.draw
    heights, widths = (draw(st.lists(st.integers(9, 34), min_size=1, max_size=2)) for _ in range(2))
    made = []
    for i, height in enumerate(heights):
        for j, width in enumerate(widths):
            names = draw(st.lists(st.integers(0, 40), min_size=1, max_size=9, unique=True))
            chunks = (draw(st.integers(2, 12)), draw(st.integers(3, 12)), draw(st.integers(3, 12)))
            corner = (sum(heights[:i]), sum(widths[:j]))
            shape = (len(names), height, width)
            granules = [f"g{n:02}" for n in names]
            made.append(make_cube(f"c{i}{j}", corner, shape, chunks, granules))
    height, width = sum(heights), sum(widths)
    row, column = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
    rows, columns = draw(st.integers(1, height - row)), draw(st.integers(1, width - column))
    inset = draw(st.sampled_from([0.0, 1.0, 59.0]))  # metres: any part of a pixel is all of it
    bbox = [
        LEFT + 120 * column + inset, TOP - 120 * (row + rows) + inset,
        LEFT + 120 * (column + columns) - inset, TOP - 120 * row - inset,
    ]  # fmt: skip
    days = sorted(draw(st.tuples(st.integers(0, 20), st.integers(0, 20))))
    start, end = (np.datetime64("2018-01-01") + day for day in days)
    asked = request(bbox=bbox, datetime=f"{start}/{end}")

    def in_area(one: Made) -> bool:
        west, south, east, north = bbox
        return bool(
            (abs(one.cube.x - (west + east) / 2) < (east - west) / 2 + 60).any()
            and (abs(one.cube.y - (south + north) / 2) < (north - south) / 2 + 60).any()
        )

    made = [one for one in made if in_area(one)]  # what the catalog finds
    whole: dict[bytes, np.ndarray[Any, Any]] = {}
    dates: dict[bytes, Any] = {}
    for one in made:
        r, c = (round((TOP - one.cube.y[0]) / 120 - 0.5), round((one.cube.x[0] - LEFT) / 120 - 0.5))
        for n, granule in enumerate(one.cube.granule.tolist()):
            if start <= one.cube.mid_date[n] <= end:
                layer = whole.setdefault(granule, np.full((height, width), MISSING, "i2"))
                layer[r : r + one.values.shape[1], c : c + one.values.shape[2]] = one.values[n]
                dates[granule] = one.cube.mid_date[n]
    if not whole:
        with pytest.raises(NoCoverageError, match="image pairs"):
            plan_of(asked, made)
        return
    order = sorted(whole, key=lambda g: (dates[g], g))
    expected = np.stack([whole[g][row : row + rows, column : column + columns] for g in order])

    plan = plan_of(asked, made)
    done = carry_out(plan, made)
    np.testing.assert_array_equal(done.store, expected)
    assert plan.layers.granule.tolist() == order
    np.testing.assert_allclose(plan.x, LEFT + 120 * (column + 0.5 + np.arange(columns)))
    np.testing.assert_allclose(plan.y, TOP - 120 * (row + 0.5 + np.arange(rows)))
    assert done.used == set(plan.uses)
    assert (plan.source_cube >= 0).all()


@settings(max_examples=120)
@given(data=st.data())
def test_overlaps_and_other_lattices_equal_brute_force(data: st.DataObject) -> None:
    """Cubes anywhere, some beside the lattice: value by value, the first that may and has one."""
    draw = data.draw
    beside = draw(st.sampled_from([(0.3, 0.45), (0.5, 0.0), (-0.2, 0.1)]))
    made, shifts = [], []
    for n in range(draw(st.integers(1, 4))):
        shift = (0.0, 0.0) if n == 0 else draw(st.sampled_from([(0.0, 0.0), beside, (0.1, 0.1)]))
        names = draw(st.lists(st.integers(0, 7), min_size=1, max_size=5, unique=True))
        shape = (len(names), draw(st.integers(2, 24)), draw(st.integers(2, 24)))
        chunks = (draw(st.integers(1, 6)), draw(st.integers(3, 9)), draw(st.integers(3, 9)))
        corner = draw(st.integers(0, 12)), draw(st.integers(0, 12))
        one = make_cube(
            f"c{n}", corner, shape, chunks, [f"g{k:02}" for k in names], variable="v_error",
            shift=shift,
        )  # fmt: skip
        seed = np.random.default_rng(draw(st.integers(0, 9)))
        one.values[...] = seed.integers(0, 3, shape)  # the same value often, and not always
        one.values[seed.random(shape) < 0.5] = MISSING
        made.append(one)
        shifts.append((shift, corner))
    row, column = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    rows, columns = draw(st.integers(1, 30)), draw(st.integers(1, 30))
    bbox = [
        LEFT + 120 * column, TOP - 120 * (row + rows), LEFT + 120 * (column + columns),
        TOP - 120 * row,
    ]  # fmt: skip

    first = {one.cube.id: n for n, one in enumerate(made)}
    order = sorted(range(len(made)), key=lambda n: shifts[n][0] != (0.0, 0.0))
    lattice = np.full((rows, columns), -1)
    lattices = [(0.0, 0.0)]
    claims: dict[int, list[tuple[int, int, int, int]]] = {}
    for n in order:
        (down, right), corner = shifts[n]
        if (down, right) not in lattices:
            lattices.append((down, right))
        number = lattices.index((down, right))
        for i in range(rows):
            for j in range(columns):
                a = math.floor(row + i + 0.5 - corner[0] - down)
                b = math.floor(column + j + 0.5 - corner[1] - right)
                inside = 0 <= a < len(made[n].cube.y) and 0 <= b < len(made[n].cube.x)
                if inside and lattice[i, j] in (-1, number):
                    lattice[i, j] = number
                    claims.setdefault(n, []).append((i, j, a, b))
    asked = request(bbox=bbox, variables=["v_error"])
    if not claims:
        with pytest.raises(NoCoverageError, match="no pixel"):
            plan_of(asked, made)
        return
    expected: dict[bytes, Any] = {}
    conflicts = 0
    owner = np.full((rows, columns), -1)
    for number, n in enumerate(n for n in order if n in claims):
        for i, j, _, _ in claims[n]:
            owner[i, j] = number if owner[i, j] < 0 else owner[i, j]
        for k, granule in enumerate(made[n].cube.granule.tolist()):
            layer = expected.setdefault(granule, np.full((rows, columns), MISSING))
            for i, j, a, b in claims[n]:
                value = made[n].values[k, a, b]
                if layer[i, j] == MISSING:
                    layer[i, j] = value
                else:
                    conflicts += int(value not in (MISSING, layer[i, j]))
    kept = np.ix_(np.flatnonzero((lattice >= 0).any(1)), np.flatnonzero((lattice >= 0).any(0)))
    rows_kept, columns_kept = (np.ravel(side) for side in kept)
    kept = np.ix_(
        np.arange(rows_kept[0], rows_kept[-1] + 1), np.arange(columns_kept[0], columns_kept[-1] + 1)
    )

    plan = plan_of(asked, made, draw(st.sampled_from([1, 10**9])))
    done = carry_out(plan, made)
    assert [first[cube.id] for cube in plan.cubes] == [n for n in order if n in claims]
    np.testing.assert_array_equal(plan.source_cube, owner[kept])
    names = plan.layers.granule.tolist()
    assert sorted(names) == sorted(expected)
    np.testing.assert_array_equal(done.store, np.stack([expected[g][kept] for g in names]))
    assert done.conflicts == conflicts
    assert done.used == set(plan.uses)
    assert plan.summary().get("resampled", {}) == {
        one.cube.id: "EPSG:3413"
        for n, one in enumerate(made)
        if n in claims and shifts[n][0] != (0.0, 0.0)
    }


def test_only_time_chunks_with_wanted_pairs_are_read() -> None:
    one = make_cube("a", (0, 0), (40, 10, 10), (10, 10, 10), [f"g{n:02}" for n in range(40)])
    asked = request(
        bbox=[LEFT, TOP - 1200, LEFT + 1200, TOP], datetime="2018-01-08/2018-01-09"
    )  # pairs 14 to 17: the second of four chunks
    plan = plan_of(asked, [one])
    assert set(plan.uses) == {(0, "vx/1.0.0")}
    assert plan.summary()["source_chunks"] == 1
    assert plan.summary()["source_bytes_decoded"] == 10 * 10 * 10 * 2
    assert plan.summary()["pairs"] == {"read": 40, "kept": 4, "merged": 0}


def test_source_cube_says_where_a_pixel_comes_from() -> None:
    one = make_cube("a", (0, 0), (1, 10, 10), (1, 10, 10), ["g00"])
    two = make_cube("b", (5, 10), (1, 10, 10), (1, 10, 10), ["g00"])
    plan = plan_of(request(bbox=[LEFT, TOP - 1800, LEFT + 2400, TOP]), [one, two])
    owner = np.full((15, 20), -1)
    owner[:10, :10] = 0
    owner[5:, 10:] = 1
    np.testing.assert_array_equal(plan.source_cube, owner)


def test_misfits_are_refused() -> None:
    one = make_cube("a", (0, 0), (1, 10, 10), (1, 10, 10), ["g00"])
    asked = request(bbox=[LEFT, TOP - 1200, LEFT + 1200, TOP])
    for axis in ("x", "y"):
        turned = make_cube("b", (0, 10), (1, 10, 10), (1, 10, 10), ["g00"])
        getattr(turned.cube, axis)[:] = getattr(turned.cube, axis)[::-1].copy()
        for order in ([one, turned], [turned, one]):
            with pytest.raises(SourceCorruptError, match="x/b: x must ascend and y descend"):
                plan_of(asked, order)
    other = make_cube("d", (0, 10), (1, 10, 10), (1, 10, 10), ["g00"])
    big_endian = replace(other.cube.layout.arrays["vx"], dtype=np.dtype(">i2"))
    other.cube.layout.arrays["vx"] = big_endian  # type: ignore[index]
    with pytest.raises(SourceCorruptError, match=r"vx is >i2 with -32767.*in a it is int16"):
        plan_of(asked, [one, other])
    with pytest.raises(SourceMissingError, match="it has vx"):
        plan_of(request(bbox=[LEFT, TOP - 1200, LEFT + 1200, TOP], variables=["v"]), [one])
    with pytest.raises(NoCoverageError, match="no pixel"):
        plan_of(request(bbox=[0, 0, 1200, 1200]), [one])
    with pytest.raises(TooLargeError, match="FIRNLINE_MAX_JOB_BYTES"):
        make_plan(asked, "EPSG:3413", [one.cube], memory_limit=1, max_bytes=10)


def test_memory_limit_bounds_the_tile() -> None:
    one = make_cube("a", (0, 0), (50, 200, 200), (50, 10, 10), [f"g{n:02}" for n in range(50)])
    asked = request(bbox=[LEFT, TOP - 24000, LEFT + 24000, TOP])
    for limit in (1, 4_000_000, 2_000_000_000):
        high, wide = plan_of(asked, [one], limit).tile_shape
        assert high % 20 == wide % 20 == 0
        assert 50 * high * wide * 2 <= max(limit // 16, 50 * 20 * 20 * 2)


def test_a_changed_source_changes_the_fingerprint() -> None:
    asked = request(bbox=[LEFT, TOP - 1200, LEFT + 1200, TOP])
    shape = (1, 10, 10)
    one, two, changed = (
        plan_of(asked, [make_cube("a", (0, 0), shape, shape, ["g00"], etag=etag)])
        for etag in ('"1"', '"1"', '"2"')
    )
    assert one.fingerprint == two.fingerprint != changed.fingerprint


def test_crs_is_that_which_covers_most() -> None:
    area = box(0, -2_300_000, 40_000, -2_260_000)
    asked = request(bbox=list(area.bounds))
    half = CubeItem("polar", "http://x", "EPSG:3413", box(0, -2_300_000, 20_000, -2_260_000), 10)
    from firnline.crs import parse_crs

    inside = asked.area_in(parse_crs("EPSG:32623")).bounds
    whole = CubeItem("utm", "http://x", "EPSG:32623", box(*inside), 1)
    assert choose_crs(asked, [half, whole]) == "EPSG:32623"
    full = CubeItem("full", "http://x", "EPSG:3413", area, 1)
    assert choose_crs(asked, [full, whole]) == "EPSG:3413"  # that in which the area was given
    forced = request(bbox=list(area.bounds), out_crs="EPSG:3413")
    assert choose_crs(forced, [half, whole]) == "EPSG:3413"
    other = request(bbox=list(area.bounds), out_crs="EPSG:32624")  # though no cube is in it
    assert choose_crs(other, [half, whole]) == "EPSG:32624"
    one = CubeItem("other", "http://x", "EPSG:32623", box(*inside), 1)
    assert [c.id for c in by_coverage(asked, "EPSG:3413", [one, half])] == ["polar", "other"]
    assert [cube.id for cube in by_coverage(asked, "EPSG:3413", [half, full])] == ["full", "polar"]
