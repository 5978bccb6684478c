"""Merging pairs and scattering chunks, against the plainest code that does the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from firnline.cache.stitch import PairTable, merge_pairs, scatter

granules = st.sampled_from([b"", *(f"granule-{n}.nc".encode() for n in range(6))])
rows = st.lists(st.tuples(granules, st.integers(0, 5), st.booleans()), max_size=12)


def table(content: list[tuple[bytes, int, bool]], **more: Any) -> PairTable:
    """A cube's pairs; a granule has the same mid-date wherever it occurs, as in ITS_LIVE."""
    names = np.array([row[0] for row in content], "S16")
    days = [len(name) + 10 * int(name[8:9] or b"0") if name else row[1]
            for name, row in zip(names.tolist(), content, strict=True)]  # fmt: skip
    return PairTable(
        mid_date=np.array(days, "M8[D]").astype("M8[us]"),
        granule=names,
        per_pair={"date_dt": np.arange(len(content), dtype="f4"), **more},
        missing={"date_dt": np.float32(-1), "only": np.uint8(255)},
        wanted=np.array([row[2] for row in content], bool),
    )


@given(st.lists(rows, min_size=1, max_size=4))
def test_every_wanted_pair_has_one_layer(contents: list[list[tuple[bytes, int, bool]]]) -> None:
    tables = [table(content) for content in contents]
    layers = merge_pairs(tables)
    assert (np.diff(layers.mid_date.astype("i8")) >= 0).all()
    assert layers.read == sum(map(len, contents))
    assert layers.kept == sum(row[2] for content in contents for row in content)
    taken = set()
    for one, of_pair in zip(tables, layers.of_pair, strict=True):
        wanted = of_pair >= 0
        np.testing.assert_array_equal(wanted, one.wanted)
        mine = of_pair[wanted]
        assert len(set(mine.tolist())) == len(mine)  # pairs of one cube are never merged
        np.testing.assert_array_equal(layers.granule[mine], one.granule[wanted])
        np.testing.assert_array_equal(layers.mid_date[mine], one.mid_date[wanted])
        taken |= set(mine.tolist())
    assert taken == set(range(len(layers)))
    # a named granule has as many layers as the cube that has it most often
    for name in {row[0] for content in contents for row in content} - {b""}:
        most = max(sum(r[0] == name and r[2] for r in content) for content in contents)
        assert (layers.granule == name).sum() == most
    unnamed = sum(not row[0] and row[2] for content in contents for row in content)
    assert (layers.granule == b"").sum() == unnamed


def test_pairs_of_one_date_go_by_their_granule_whatever_cube_they_are_of() -> None:
    tables = [table([(name, 0, True) for name in names]) for names in ([b"c", b"a"], [b"d", b"b"])]
    tables = [replace(one, mid_date=np.full(2, "2018-05-01", "M8[us]")) for one in tables]
    for order in (tables, tables[::-1]):
        layers = merge_pairs(order)
        assert layers.granule.tolist() == [b"a", b"b", b"c", b"d"]
        assert [of_pair.tolist() for of_pair in layers.of_pair] == (
            [[2, 0], [3, 1]] if order is tables else [[3, 1], [2, 0]]
        )


def test_first_table_that_has_a_pair_gives_its_scalars() -> None:
    one = table([(b"granule-1.nc", 0, True), (b"granule-0.nc", 0, True)])
    two = table(
        [(b"granule-3.nc", 0, True), (b"granule-1.nc", 0, True)], only=np.array([7, 8], "u1")
    )
    layers = merge_pairs([one, two])
    assert layers.granule.tolist() == [b"granule-0.nc", b"granule-1.nc", b"granule-3.nc"]
    assert layers.per_pair["date_dt"].tolist() == [1, 0, 0]
    # what the first cube does not have is missing there, whatever a later one says
    assert layers.per_pair["only"].tolist() == [255, 255, 7]
    assert layers.merged == 1


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 2**32 - 1),
)
def test_scatter_equals_loops(shape: tuple[int, int, int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs, height, width = shape
    layers = 9
    values = rng.integers(-99, 99, (pairs + 2, height, width)).astype("i2")  # longer at the edge
    target = rng.integers(100, 200, (layers, 12, 11)).astype("i2")
    to = rng.permutation(layers)[:pairs]
    wanted = np.flatnonzero(rng.random(pairs) < 0.7)
    top, left = rng.integers(0, 4, 2)
    h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
    y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
    expected = target.copy()
    for pair in wanted:
        for i in range(h):
            for j in range(w):
                expected[to[pair], top + i, left + j] = values[pair, y + i, x + j]
    scatter(
        target, values, (wanted, to[wanted]),
        (slice(top, top + h), slice(y, y + h)), (slice(left, left + w), slice(x, x + w)),
    )  # fmt: skip
    np.testing.assert_array_equal(target, expected)
