"""Grids of COGs: from a few bytes of files that GDAL wrote, of every size and layout."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.shutil import copy
from rasterio.transform import Affine

from firnline.errors import (
    SourceCorruptError,
    SourceMissingError,
    SourceUnreachableError,
)
from firnline.indexer import cog
from firnline.indexer.cog import read_grid
from firnline.indexer.mirror import Fault, Faults, MirrorServer
from firnline.source import Source
from firnline.source_files import Grid

NORTH_UP = Affine(120.0, 0.0, -2_700_067.5, 0.0, -120.0, 2_700_007.5)


def write(path: Path, driver: str = "COG", **more: Any) -> Path:
    """A raster without any data."""
    values: dict[str, Any] = {
        "height": 300, "width": 200, "count": 1, "dtype": "uint8", "crs": "EPSG:3031",
        "transform": NORTH_UP,
    }  # fmt: skip
    values |= more
    options = {name: values.pop(name) for name in ("crs", "transform")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if driver != "COG":
            with rasterio.open(path, "w", driver=driver, **values, **options) as raster:
                raster.write(np.ones(raster.shape, values["dtype"]), 1)
            return path
        sparse = {"tiled": True, "blockxsize": 512, "blockysize": 512, "sparse_ok": True}
        with MemoryFile() as file:
            with file.open(driver="GTiff", **values, **options, **sparse):
                pass
            with file.open() as raster:
                copy(raster, path, driver="COG", sparse_ok=True, overviews="NONE")
    return path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MirrorServer]:
    with MirrorServer(tmp_path) as server:
        yield server


@pytest.fixture
def source(server: MirrorServer) -> Source:
    return Source(server.url, allowed=(f"{server.url}/",))


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ((300, 200), "EPSG:3413"),
        ((45_000, 46_000), "EPSG:3031"),  # as all of Antarctica: 8,000 tiles, 95 kB of header
        ((30_000, 30_000), "ESRI:102027"),
    ],
)
def test_one_request_of_16_kb(
    source: Source, server: MirrorServer, tmp_path: Path, shape: tuple[int, int], code: str
) -> None:
    write(tmp_path / "a.tif", height=shape[0], width=shape[1], crs=code)
    grid = read_grid(source, "a.tif", code)
    assert grid == Grid(shape, tuple(NORTH_UP)[:6])
    assert grid.bbox == [
        -2_700_067.5,
        2_700_007.5 - 120 * shape[0],
        -2_700_067.5 + 120 * shape[1],
        2_700_007.5,
    ]
    size = (tmp_path / "a.tif").stat().st_size
    (request,) = server.requests
    assert request.method == "GET"
    assert request.status == 206
    assert (size > 16_384) is (shape[0] > 300)


def test_a_tag_behind_the_data_takes_a_second_request(
    source: Source, server: MirrorServer, tmp_path: Path
) -> None:
    """A plain GeoTIFF that was changed after it was written has its tags at the end."""
    path = write(tmp_path / "a.tif", "GTiff")
    with rasterio.open(path, "r+") as raster:
        raster.transform = NORTH_UP @ Affine.translation(1, 0)
        raster.update_tags(note="x" * 100)
    assert path.stat().st_size > cog._FIRST
    assert read_grid(source, "a.tif", "EPSG:3031").transform[2] == -2_700_067.5 + 120
    assert len(server.requests) == 2


def test_what_is_no_cog(source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.tif").touch()
    (tmp_path / "html.tif").write_text("<html>503</html>")
    (tmp_path / "vrt.tif").write_text(
        '<VRTDataset rasterXSize="1" rasterYSize="1"><SRS>EPSG:3031</SRS></VRTDataset>'
    )
    (tmp_path / "cut.tif").write_bytes(write(tmp_path / "a.tif").read_bytes()[:100])
    write(tmp_path / "nowhere.tif", crs=None, transform=Affine.identity())
    for name in ("empty", "html", "vrt", "cut", "nowhere"):
        with pytest.raises(SourceCorruptError, match=f"{name}.tif does not begin as a geo"):
            read_grid(source, f"{name}.tif", "EPSG:3031")
    monkeypatch.setattr(cog, "_MOST", 20_000)
    path = write(tmp_path / "behind.tif", "GTiff")
    with rasterio.open(path, "r+") as raster:
        raster.update_tags(note="x" * 100)
    with pytest.raises(SourceCorruptError, match="does not begin"):
        read_grid(source, "behind.tif", "EPSG:3031")


@pytest.mark.parametrize(
    ("transform", "crs", "reason"),
    [
        (NORTH_UP @ Affine.rotation(1), "EPSG:3031", "not north up"),
        (Affine(120, 0, 0, 0, 120, 0), "EPSG:3031", "not north up"),
        (NORTH_UP, "EPSG:3413", "in EPSG:3413, not in EPSG:3031"),
    ],
)
def test_another_grid_than_a_mosaic_has(
    source: Source, tmp_path: Path, transform: Affine, crs: str, reason: str
) -> None:
    write(tmp_path / "a.tif", transform=transform, crs=crs)
    with pytest.raises(SourceCorruptError, match=reason):
        read_grid(source, "a.tif", "EPSG:3031")


def test_missing_is_not_unreachable(
    source: Source, server: MirrorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceMissingError):
        read_grid(source, "a.tif", "EPSG:3031")
    monkeypatch.setattr("firnline.web._RETRIES", 0)
    server.faults = Faults(Fault("status", 503))
    with pytest.raises(SourceUnreachableError):
        read_grid(Source(server.url, allowed=(f"{server.url}/",)), "a.tif", "EPSG:3031")


@settings(max_examples=100)
@given(st.binary(max_size=2_000) | st.integers(0, 3_000))
def test_any_bytes_give_a_grid_or_none(data: bytes | int) -> None:
    """Cut anywhere, or no TIFF at all: never another exception, nor a grid that is not there."""
    if isinstance(data, int):
        with MemoryFile() as file:
            with file.open(
                driver="GTiff", height=30, width=20, count=1, dtype="uint8", crs="EPSG:3031",
                transform=NORTH_UP,
            ) as raster:  # fmt: skip
                raster.write(np.ones((30, 20), "u1"), 1)
            data = bytes(file.getbuffer())[:data]
        found = cog._decode(data)
        assert found is None or found[0] == Grid((30, 20), tuple(NORTH_UP)[:6])
    else:
        assert cog._decode(data) is None
