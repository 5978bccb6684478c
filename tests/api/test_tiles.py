"""Tiles, previews and points of maps, against the stores that the maps were made of."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import xarray as xr
from PIL import Image
from pyproj import Transformer
from starlette.testclient import TestClient

from firnline.api.app import create_app
from firnline.cache import jobs, worker
from firnline.cache.opening import subset_place
from firnline.cache.request import Request
from firnline.database import connect

Z = 10
PIXEL = 2.0 ** (15 - Z)  # metres in the polar grids
HALF = 2.0**22


@dataclass(frozen=True)
class Subset:
    http: TestClient
    folder: Path
    path: str

    def picture(self, what: str, **query: Any) -> np.ndarray[Any, Any]:
        """Red, green, blue and alpha of a PNG, on (row, column)."""
        answer = self.http.get(f"{self.path}/assets/{what}", params=query)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "image/png"
        return np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGBA"))

    def problem(self, status: int, what: str, **query: Any) -> str:
        answer = self.http.get(f"{self.path}/assets/{what}", params=query)
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        return str(answer.json()["detail"])


@pytest.fixture(scope="module")
def subset(sample: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subset]:
    settings = sample.settings(tmp_path_factory.mktemp("tiles") / "data")
    engine = connect(settings.database)
    asked = {"bbox": sample.mirror.aoi, "crs": "EPSG:3413", "pairs": False}
    job = worker.finish(engine, settings, jobs.submit(engine, Request.parse(asked, settings)))
    assert job.subset is not None, job.message
    http = TestClient(create_app(settings, engine), raise_server_exceptions=False)
    folder = subset_place(engine, settings, job.subset)
    yield Subset(http, folder, f"/collections/subsets/items/{job.subset}")
    engine.dispose()


@pytest.fixture(scope="module")
def composite(subset: Subset) -> xr.Dataset:
    return xr.open_zarr(subset.folder / "composite.zarr").load()


def painted(values: Any, low: float, high: float, name: str) -> np.ndarray[Any, Any]:
    """What matplotlib makes of values, clear where there is none."""
    shade = np.rint(np.clip((np.nan_to_num(values) - low) / (high - low), 0, 1) * 255)
    colours = np.rint(matplotlib.colormaps[name](shade.astype(int)) * 255)
    colours[~np.isfinite(values)] = 0
    return np.asarray(colours)


def alike(one: Any, other: Any) -> float:
    """Share of pixels of the same colour; the colours of what is clear do not matter."""
    clear = (one[..., 3] == 0) & (other[..., 3] == 0)
    return float((clear | (np.abs(one - other) <= 2).all(axis=-1)).mean())


def at(ds: xr.Dataset, x: Any, y: Any, band: int, field: str = "v") -> np.ndarray[Any, Any]:
    """Values of the pixels that hold points; NaN outside."""
    step = 120.0
    column = np.floor((x - (ds.x.values[0] - step / 2)) / step).astype(int)
    row = np.floor(((ds.y.values[0] + step / 2) - y) / step).astype(int)
    there = (column >= 0) & (column < ds.sizes["x"]) & (row >= 0) & (row < ds.sizes["y"])
    values = ds[field].values[band][np.where(there, row, 0), np.where(there, column, 0)]
    return np.where(there, values, np.nan)


@pytest.mark.parametrize("band", [1, 3])
def test_polar_tiles_are_the_composite(subset: Subset, composite: xr.Dataset, band: int) -> None:
    column = int((composite.x.values.mean() + HALF) // (256 * PIXEL))
    row = int((HALF - composite.y.values.mean()) // (256 * PIXEL))
    picture = subset.picture(
        f"cog_v/tiles/EPSG3413/{Z}/{column}/{row}.png", bidx=band, rescale="0,4000"
    )
    assert picture.shape == (256, 256, 4)
    x = -HALF + (column * 256 + np.arange(256) + 0.5) * PIXEL
    y = HALF - (row * 256 + np.arange(256) + 0.5) * PIXEL
    expected = painted(at(composite, *np.meshgrid(x, y), band - 1), 0, 4000, "turbo")
    assert (picture[..., 3] > 0).mean() > 0.5
    assert alike(picture.astype(int), expected) > 0.995


def test_mercator_tiles_are_warped(subset: Subset, composite: xr.Dataset) -> None:
    z = 12
    to_mercator = Transformer.from_crs(3413, 3857, always_xy=True)
    half, size = 20037508.342789244, 2 * 20037508.342789244 / 2**z
    mx, my = to_mercator.transform(composite.x.values.mean(), composite.y.values.mean())
    column, row = int((mx + half) // size), int((half - my) // size)
    picture = subset.picture(
        f"cog_v/tiles/WebMercatorQuad/{z}/{column}/{row}.png", bidx=2, rescale="0,4000"
    )
    x = -half + (column + (np.arange(256) + 0.5) / 256) * size
    y = half - (row + (np.arange(256) + 0.5) / 256) * size
    back = Transformer.from_crs(3857, 3413, always_xy=True)
    expected = painted(at(composite, *back.transform(*np.meshgrid(x, y)), 1), 0, 4000, "turbo")
    assert (picture[..., 3] > 0).mean() > 0.5
    # pixels of the store are larger than those of the tile: only their borders may differ
    assert alike(picture.astype(int), expected) > 0.93


def test_a_tile_beside_the_map_has_a_clear_part(subset: Subset, composite: xr.Dataset) -> None:
    left = composite.x.values[0] - 60
    column = int((left + HALF) // (256 * PIXEL))
    row = int((HALF - composite.y.values.mean()) // (256 * PIXEL))
    picture = subset.picture(f"cog_v/tiles/EPSG3413/{Z}/{column}/{row}.png")
    outside = -HALF + (column * 256 + np.arange(256) + 1) * PIXEL < left
    assert outside.any()
    assert (picture[:, outside, 3] == 0).all()


def test_previews_by_the_renders_of_the_item(subset: Subset, composite: xr.Dataset) -> None:
    renders = subset.http.get(subset.path).json()["properties"]["renders"]
    strain = xr.open_zarr(subset.folder / "strain.zarr").load()
    for key, values, name in [
        ("cog_v", composite.v, "turbo"),
        ("cog_shear", strain["shear"], "RdBu_r"),
        ("cog_effective", strain.effective, "magma_r"),
    ]:
        render = renders[key]
        assert render["colormap_name"] == name.lower()
        (band,), ((low, high),) = render["bidx"], render["rescale"]
        expected = painted(values.values[band - 1], low, high, name)
        assert alike(subset.picture(f"{key}/preview.png").astype(int), expected) == 1.0
        inside = (values.values[band - 1] >= low) & (values.values[band - 1] <= high)
        assert inside.sum() > 0.9 * np.isfinite(values.values[band - 1]).sum()


def test_a_logarithmic_preview(subset: Subset, composite: xr.Dataset) -> None:
    picture = subset.picture(
        "cog_v/preview.png", bidx=1, rescale="10,4000", stretch="log", colormap_name="viridis"
    )
    expected = painted(np.log10(composite.v.values[0]), 1, np.log10(4000), "viridis")
    assert alike(picture.astype(int), expected) == 1.0
    assert subset.picture("cog_v/preview.png", max_size=32).shape == (32, 32, 4)


def test_points(subset: Subset, composite: xr.Dataset) -> None:
    x, y = composite.x.values[20], composite.y.values[30]
    lon, lat = Transformer.from_crs(3413, 4326, always_xy=True).transform(x, y)
    answer = subset.http.get(f"{subset.path}/assets/cog_vx/point/{lon},{lat}").json()
    np.testing.assert_allclose(
        np.array(answer["values"], float), composite.vx.values[:, 30, 20], rtol=1e-6
    )
    assert answer["band_names"] == [f"vx {year}" for year in (2017, 2018, 2019, 2020)]
    assert answer["unit"] == "meter/year"
    assert answer["coordinates"] == [lon, lat]


def test_a_point_without_a_value_is_null(subset: Subset, composite: xr.Dataset) -> None:
    missing = np.argwhere(np.isnan(composite.v.values[0]))
    assert len(missing)
    x, y = composite.x.values[missing[0, 1]], composite.y.values[missing[0, 0]]
    lon, lat = Transformer.from_crs(3413, 4326, always_xy=True).transform(x, y)
    answer = subset.http.get(f"{subset.path}/assets/cog_v/point/{lon},{lat}").json()
    assert answer["values"][0] is None


def test_what_a_client_has_is_not_painted_again(subset: Subset) -> None:
    path = f"{subset.path}/assets/cog_v/preview.png"
    first = subset.http.get(path)
    assert first.headers["cache-control"] == "no-cache"
    assert subset.folder.name in first.headers["etag"]  # the generation
    again = subset.http.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = subset.http.get(path, headers={"If-None-Match": '"another-1"'})
    assert other.content == first.content


@pytest.mark.parametrize(
    ("status", "what", "query", "told"),
    [
        (404, "zarr/preview.png", {}, "has no map 'zarr'; it has: cog_count"),
        (404, "../../x/preview.png", {}, "there is nothing at"),
        (404, "cog_v/tiles/EPSG9999/1/0/0.png", {}, "WebMercatorQuad, EPSG3413, EPSG3031"),
        (404, "cog_v/tiles/EPSG3413/15/0/0.png", {}, "z is 0 to 14"),
        (404, "cog_v/tiles/EPSG3413/1/2/0.png", {}, "x and y 0 to 2^z - 1"),
        (404, "cog_v/tiles/EPSG3413/5/0/0.png", {}, "outside of the map, which covers -49.3"),
        (404, "cog_v/tiles/EPSG3031/3/0/0.png", {}, "outside of the map"),
        (404, "cog_v/point/0,0", {}, "outside of the map"),
        (400, "cog_v/tiles/EPSG3413/-1/0/0.png", {}, "z: "),
        (400, "cog_v/tiles/EPSG3413/a/0/0.png", {}, "z: "),
        (400, "cog_v/point/0,91", {}, "lat: "),
        (400, "cog_v/preview.png", {"bidx": 5}, "cog_v has 4, from 1"),
        (400, "cog_v/preview.png", {"bidx": 0}, "bidx: "),
        (400, "cog_v/preview.png", {"rescale": "5"}, "rescale takes two numbers"),
        (400, "cog_v/preview.png", {"rescale": "5,1"}, "the lesser first"),
        (400, "cog_v/preview.png", {"rescale": "0,inf"}, "rescale takes two numbers"),
        (400, "cog_v/preview.png", {"rescale": "nan,1"}, "rescale takes two numbers"),
        (400, "cog_v/preview.png", {"colormap_name": "jetty"}, "'jetty' is not known"),
        (400, "cog_v/preview.png", {"stretch": "cubic"}, "accepted are linear and log"),
        (400, "cog_shear/preview.png", {"stretch": "log"}, "needs a positive range"),
        (400, "cog_v/preview.png", {"url": "file:///etc/passwd"}, "'url' is not a parameter"),
    ],
)
def test_what_is_not_there(
    subset: Subset, status: int, what: str, query: dict[str, Any], told: str
) -> None:
    assert told in subset.problem(status, what, **query)


def test_a_file_that_was_removed(subset: Subset) -> None:
    file = subset.folder / "e2.tif"
    kept = file.read_bytes()
    file.unlink()
    try:
        assert "no longer stored" in subset.problem(404, "cog_e2/preview.png")
    finally:
        file.write_bytes(kept)


@pytest.mark.parametrize("code", [3413, 3031])
def test_the_polar_grids(subset: Subset, code: int) -> None:
    """As in OGC's two-dimensional tile matrix sets: halves of a square of 2^23 m."""
    grid = subset.http.get(f"/tileMatrixSets/EPSG{code}").json()
    assert grid["crs"].endswith(f"/EPSG/0/{code}")
    matrices = grid["tileMatrices"]
    assert [each["cellSize"] for each in matrices] == [2.0 ** (15 - z) for z in range(15)]
    assert {tuple(each["pointOfOrigin"]) for each in matrices} == {(-HALF, HALF)}
    assert [each["matrixWidth"] for each in matrices] == [2**z for z in range(15)]


def test_colours_are_matplotlibs(subset: Subset) -> None:
    colours = subset.http.get("/colormaps/magma_r").json()
    expected = np.rint(matplotlib.colormaps["magma_r"](np.arange(256)) * 255)
    np.testing.assert_allclose(colours, expected, atol=1)
    assert subset.http.get("/colormaps/x").status_code == 400
