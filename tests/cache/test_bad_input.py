"""Areas that are odd and cubes that are not what they say: an answer, or the reason why not."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from shapely.geometry import box
from sqlalchemy import Engine

from firnline.cache import jobs, worker
from firnline.cache.opening import subset_place
from firnline.cache.planning import make_plan
from firnline.cache.request import Request
from firnline.cache.sources import CubeItem, OpenCube, Opening, find_cubes
from firnline.cube import Array, Cube
from firnline.errors import NoCoverageError, SourceCorruptError, TooLargeError
from firnline.indexer.flow import FlowField
from firnline.indexer.sample import Mirror, write_tiles
from firnline.settings import Settings
from firnline.source import Source

PLAIN = {"crs": "EPSG:3413", "variables": ["vx"], "composite": None, "strain": False}


def ended(engine: Engine, settings: Settings, **inputs: Any) -> jobs.Job:
    job = jobs.submit(engine, Request.parse({**PLAIN, **inputs}, settings))
    return worker.finish(engine, settings, job)


# --- areas


def with_hole(bounds: tuple[float, ...], margin: float) -> dict[str, Any]:
    inner = box(*bounds).buffer(-margin, join_style="mitre")
    area = box(*bounds).difference(inner)
    return dict(json.loads(json.dumps(area.__geo_interface__)))


def test_a_polygon_with_a_hole_is_stored_with_its_hole_filled(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    """What is stored is the bounding window, so cubes that lie in the hole count as well."""
    aoi = sample.mirror.aoi
    window = Request.parse({**PLAIN, "bbox": aoi}, settings)
    holed = Request.parse({**PLAIN, "geometry": with_hole(aoi, 300)}, settings)
    found = [find_cubes(engine, one, window="EPSG:3413") for one in (window, holed)]
    assert found[0] == found[1]
    stores = []
    for inputs in ({"bbox": aoi}, {"geometry": with_hole(aoi, 300)}):
        job = ended(engine, settings, **inputs)
        assert job.status == "successful"
        assert job.subset is not None
        folder = subset_place(engine, settings, job.subset)
        stores.append(xr.open_zarr(folder / "pairs.zarr", mask_and_scale=False).load())
    np.testing.assert_array_equal(stores[0].vx, stores[1].vx)
    assert (stores[0].vx != -32767).any()


def test_an_area_that_touches_a_cube_s_edge_has_no_pixel_of_it(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    cubes = [cube for cube in sample.mirror.cubes if cube.epsg == 3413]
    group: Any = zarr.open_group(sample.mirror.root / cubes[1].path, mode="r")  # ne
    right = float(group["x"][-1]) + 60
    middle = float(group["y"][40])
    outside = Request.parse({**PLAIN, "bbox": [right, middle, right + 600, middle + 600]}, settings)
    with pytest.raises(NoCoverageError, match="no cube of the catalog"):
        find_cubes(engine, outside)
    # a centimetre of a pixel is that pixel
    job = ended(engine, settings, bbox=[right - 0.01, middle, right + 600, middle + 100])
    assert job.subset is not None, job.message
    got = xr.open_zarr(
        subset_place(engine, settings, job.subset) / "pairs.zarr", mask_and_scale=False
    )
    assert got.x.values.tolist() == [right - 60]
    want = {g: group["vx"][n, 39:41, -1] for n, g in enumerate(cubes[1].granules)}
    assert got.y.values.tolist() == group["y"][39:41].tolist()
    for layer in got.vx:
        np.testing.assert_array_equal(layer.values[:, 0], want[str(layer.granule.values)])


@pytest.mark.parametrize("format", ["v3", "v2"])
@pytest.mark.parametrize(("row", "column"), [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_one_pixel_in_a_cube_s_corner(
    sample: Any, engine: Engine, settings: Settings, row: int, column: int, format: str
) -> None:
    """At the outer edge of all cubes, and where others begin beside it: it is this cube's alone."""
    cube = next(cube for cube in sample.mirror.cubes if cube.epsg == 3413)
    group: Any = zarr.open_group(sample.mirror.root / cube.path, mode="r")
    x, y = float(group["x"][column]), float(group["y"][row])
    job = ended(engine, settings, bbox=[x - 60, y - 60, x + 60, y + 60], format=format)
    assert job.subset is not None, job.message
    path = subset_place(engine, settings, job.subset) / "pairs.zarr"
    got = xr.open_zarr(path, mask_and_scale=False).load()
    assert got.vx.shape == (len(cube.granules), 1, 1)
    assert (got.x.item(), got.y.item()) == (x, y)
    want = dict(zip(cube.granules, group["vx"][:, row, column].tolist(), strict=True))
    assert dict(zip(got.granule.values.tolist(), got.vx.values.ravel(), strict=True)) == want
    assert any(value != -32767 for value in want.values())


def test_a_window_beyond_the_limit_is_refused_before_it_is_allocated() -> None:
    """A thin triangle is small, and its window a continent."""
    side, pairs = 40_000, 1_000
    settings = Settings(data_dir=Path("/nowhere"), _env_file=None)  # type: ignore[call-arg]
    shape, chunks = (pairs, side, side), (pairs, 10, 10)
    arrays = {
        "vx": Array("vx", ("mid_date", "y", "x"), shape, chunks, np.dtype("i2"), -32767, None),
        "mid_date": Array("mid_date", ("mid_date",), (pairs,), (pairs,), np.dtype("f8"), 0, None),
    }
    cube = OpenCube(
        id="vast",
        crs="EPSG:3413",
        source=SimpleNamespace(url="http://x/vast"),  # type: ignore[arg-type]
        layout=Cube("http://x/vast", '"1"', arrays, {}),
        x=-2_400_000 + 120 * (np.arange(side) + 0.5),
        y=2_400_000 - 120 * (np.arange(side) + 0.5),
        mid_date=np.full(pairs, np.datetime64("2018-01-01", "us")),
        granule=np.arange(pairs).astype("S8"),
        per_pair={},
    )
    corners = [[-2_300_000, -2_300_000], [2_300_000, 2_300_000], [2_299_000, 2_300_000]]
    geometry = {"type": "Polygon", "coordinates": [[*corners, corners[0]]]}
    request = Request.parse({**PLAIN, "geometry": geometry}, settings)
    tracemalloc.start()
    try:
        with pytest.raises(TooLargeError, match="FIRNLINE_MAX_JOB_BYTES"):
            make_plan(request, "EPSG:3413", [cube], memory_limit=2 * 10**9, max_bytes=200 * 10**9)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6


# --- cubes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mirror:
    root = tmp_path_factory.mktemp("made")
    tiles = [(3413, (-171_200.0, -2_281_200.0, -168_800.0, -2_278_800.0))]
    return write_tiles(root, "http://mirror.example", tiles, flow=FlowField(), pairs=16)


@pytest.fixture
def cube(made: Mirror, tmp_path: Path) -> Path:
    """A cube of 20 x 20 pixels that the test may spoil."""
    path = tmp_path / "cube.zarr"
    shutil.copytree(made.root / made.cubes[0].path, path)
    return path


def opened(path: Path) -> OpenCube:
    item = CubeItem("cube", "", "EPSG:3413", box(-171_200, -2_281_200, -168_800, -2_278_800), 16)
    with ThreadPoolExecutor(2) as executor:
        source = Source(path.as_uri(), allowed=(f"{path.parent.as_uri()}/",))
        return Opening(item, source, executor).result()


def plan(cube: OpenCube) -> Any:
    settings = Settings(data_dir=Path("/nowhere"), _env_file=None)  # type: ignore[call-arg]
    request = Request.parse(
        {**PLAIN, "bbox": [-171_000, -2_281_000, -169_000, -2_279_000]}, settings
    )
    return make_plan(request, "EPSG:3413", [cube], memory_limit=2 * 10**9, max_bytes=10**9)


def axis(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        array: Any = zarr.open_array(path, path=name, mode="r+")
        array[:] = change(array[:])

    return spoil


def told(key: str, change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        metadata = json.loads((path / ".zmetadata").read_text())
        change(metadata["metadata"][key])
        (path / ".zmetadata").write_text(json.dumps(metadata))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (axis("x", lambda x: x[[1, 0, *range(2, len(x))]]), "x is not an evenly spaced axis"),
        (axis("y", lambda y: y[[0, 0, *range(2, len(y))]]), "y is not an evenly spaced axis"),
        (axis("x", lambda x: np.where(x == x[3], np.nan, x)), "x is not an evenly spaced axis"),
        (axis("x", lambda x: x[::-1]), "x must ascend and y descend"),
        (axis("y", lambda y: y[::-1]), "x must ascend and y descend"),
        (told("mapping/.zattrs", lambda a: a.update(spatial_epsg=32622)), "is in EPSG:32622"),
        (told("x/.zarray", lambda a: a.update(shape=[2_000_000])), "x is 20 long"),
        (
            told("x/.zarray", lambda a: a.update(shape=[10**12], chunks=[10**12])),
            "beyond 2147483648 bytes",
        ),
        (told("vx/.zarray", lambda a: a.update(shape=[16, 10**9, 20])), "beyond belief"),
        (told("vx/.zarray", lambda a: a.update(shape=[16, 200, 20])), "y is 200 long"),
        (told("vx/.zarray", lambda a: a.update(chunks=[10**9, 10**4, 10])), "bytes"),
        (told("granule_url/.zarray", lambda a: a.update(chunks=[10**6])), "bytes"),
        (told("vx/.zarray", lambda a: a.update(dtype=">i2")), "of the other end"),
    ],
)
def test_a_cube_that_is_not_what_it_says(
    cube: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(cube)
    tracemalloc.start()
    try:
        with pytest.raises(SourceCorruptError, match=says):
            plan(opened(cube))
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_the_unspoilt_cube_is_one(cube: Path) -> None:
    assert plan(opened(cube)).shape == (16, 18, 17)


def test_the_cube_lies_elsewhere_than_the_catalog_says(cube: Path) -> None:
    axis("x", lambda x: x + 120_000)(cube)
    with pytest.raises(NoCoverageError, match="no pixel of the cubes"):
        plan(opened(cube))


def test_a_variable_that_a_cube_lacks_is_named(
    sample: Any, engine: Engine, settings: Settings
) -> None:
    """Every cube has to have what is asked for, and what its vectors are turned by."""
    from firnline.errors import SourceMissingError

    cube = OpenCube(
        id="bare",
        crs="EPSG:32622",
        source=SimpleNamespace(url="http://x/bare"),  # type: ignore[arg-type]
        layout=Cube("http://x/bare", None, {}, {}),
        x=np.arange(2.0),
        y=-np.arange(2.0),
        mid_date=np.empty(0, "M8[us]"),
        granule=np.empty(0, "S1"),
        per_pair={},
    )
    with pytest.raises(SourceMissingError, match="http://x/bare has no variable 'vx'"):
        plan(cube)
    velocity = Array(
        "v", ("mid_date", "y", "x"), (0, 2, 2), (1, 2, 2), np.dtype("i2"), -32767, None
    )
    x, y = 570_000 + 120 * np.arange(2.0), 7_668_700 - 120 * np.arange(2.0)
    only_speed = replace(cube, layout=Cube("http://x/speed", None, {"v": velocity}, {}), x=x, y=y)
    request = Request.parse(
        {**PLAIN, "variables": ["v"], "bbox": [-180_000, -2_290_000, -160_000, -2_270_000]},
        settings,
    )
    with pytest.raises(SourceMissingError, match="http://x/speed has no variable 'vx'; it has v"):
        make_plan(request, "EPSG:3413", [only_speed], memory_limit=10**9, max_bytes=10**9)
