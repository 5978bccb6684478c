"""COGs as others see them: rio-cogeo's validator, rasterio, and plain numpy for the statistics."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from pyproj import CRS
from rio_cogeo.cogeo import cog_validate

from firnline.cache.raster import write_cog
from firnline.errors import CRSError, InputError, StoreError

TRANSFORM = Affine(120, 0, 400_000, 0, -120, -2_200_000)


def write(path: Path, values: NDArray[Any], **change: Any) -> dict[str, float]:
    """Write one band and give its statistics."""
    return write_all(path, values[None], **change)[0]


def write_all(path: Path, values: NDArray[Any], **change: Any) -> list[dict[str, float]]:
    arguments: dict[str, Any] = {
        "transform": TRANSFORM,
        "crs": 3413,
        "nodata": math.nan,
        "names": ["e1"],
        "units": "year-1",
        "long_name": "most extensional principal strain rate",
        "tags": {"strain_half_length": "480", "licence": "CC-BY-4.0"},
    }
    return write_cog(path, values, **{**arguments, **change})


def field(*shape: int) -> NDArray[np.float32]:
    values = np.random.default_rng(1).normal(0, 0.01, shape).astype(np.float32)
    values[: shape[0] // 4] = np.nan
    return values


@pytest.mark.parametrize("shape", [(1, 1), (20, 30), (129, 80), (600, 700), (90, 1300)])
def test_valid_readable_and_the_same(tmp_path: Path, shape: tuple[int, int]) -> None:
    path, values = tmp_path / "e1.tif", field(*shape)
    write(path, values)
    valid, errors, warnings = cog_validate(path, strict=True)
    assert (valid, errors, warnings) == (True, [], [])
    with rasterio.open(path) as src:
        np.testing.assert_array_equal(src.read(1), values)
        assert src.crs.to_epsg() == 3413
        assert src.transform == TRANSFORM
        assert math.isnan(src.nodata)
        assert src.descriptions == ("e1",)
        assert src.units == ("year-1",)
        assert src.tags()["strain_half_length"] == "480"
        assert src.tags(1)["long_name"] == "most extensional principal strain rate"
        assert src.compression.value == "DEFLATE"
        assert max(src.block_shapes[0]) <= 512
        assert bool(src.overviews(1)) == (max(shape) > 512)
    assert [p.name for p in tmp_path.iterdir()] == ["e1.tif"]


def test_statistics(tmp_path: Path) -> None:
    values = field(64, 50)
    values[40, 3] = np.inf
    got = write(tmp_path / "a.tif", values)
    some = values[np.isfinite(values)].astype(float)
    assert got == pytest.approx(
        {
            "minimum": some.min(),
            "maximum": some.max(),
            "mean": some.mean(),
            "stddev": some.std(),
            "valid_percent": 100 * some.size / values.size,
        }
    )
    with rasterio.open(tmp_path / "a.tif") as src:
        tags = src.tags(1)
    assert float(tags["STATISTICS_MEAN"]) == got["mean"]
    assert float(tags["STATISTICS_VALID_PERCENT"]) == got["valid_percent"]


def test_counts_are_integers_and_zero_is_missing(tmp_path: Path) -> None:
    count = np.array([[0, 1, 70_000], [0, 2, 3]], np.uint32)
    got = write(tmp_path / "count.tif", count, nodata=0, names=["count"], units="1")
    assert (got["minimum"], got["maximum"]) == (1, 70_000)
    assert got["valid_percent"] == pytest.approx(100 * 4 / 6)
    with rasterio.open(tmp_path / "count.tif") as src:
        assert src.dtypes == ("uint32",)
        assert src.nodata == 0
        np.testing.assert_array_equal(src.read(1, masked=True).mask, count == 0)


def test_overviews_average_floats_and_pick_integers(tmp_path: Path) -> None:
    checkers = np.indices((1024, 1024)).sum(0) % 2
    write(tmp_path / "f.tif", checkers.astype(np.float32))
    write(tmp_path / "i.tif", checkers.astype(np.uint32), nodata=None)
    for name, values in (("f.tif", {0.5}), ("i.tif", {0, 1})):
        with rasterio.open(tmp_path / name, overview_level=0) as src:
            assert set(np.unique(src.read(1))) <= values


def test_nothing_valid(tmp_path: Path) -> None:
    got = write(tmp_path / "a.tif", np.full((9, 9), np.nan, np.float32))
    assert got == {"valid_percent": 0}
    assert cog_validate(tmp_path / "a.tif", strict=True)[0]


def test_any_crs_that_has_a_meaning(tmp_path: Path) -> None:
    for number, crs in enumerate(
        ("ESRI:102027", CRS.from_epsg(3031), CRS.from_epsg(32718).to_wkt())
    ):
        path = tmp_path / f"{number}.tif"
        write(path, field(20, 20), crs=crs)
        with rasterio.open(path) as src:
            assert CRS.from_user_input(src.crs.to_wkt()).equals(
                CRS.from_user_input(crs), ignore_axis_order=True
            )
    for bad in ("EPSG:0", "somewhere", None):
        with pytest.raises(CRSError, match="rate: unreadable CRS"):
            write(tmp_path / "bad.tif", field(20, 20), crs=bad)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.ones((2, 2)), "accepted are arrays on"),
        (np.ones((1, 0, 3)), "accepted are arrays on"),
        (np.ones((1, 3, 3), bool), "accepted are arrays on"),
        (np.ones((1, 3, 3), complex), "accepted are arrays on"),
        (np.ones((2, 3, 3)), "1 names, accepted is one for 2 bands"),
    ],
)
def test_misfits(tmp_path: Path, values: NDArray[Any], match: str) -> None:
    with pytest.raises(InputError, match=match):
        write_all(tmp_path / "a.tif", values)


def test_a_band_a_period(tmp_path: Path) -> None:
    values = np.stack([field(70, 60) + year for year in range(3)])
    names = [f"e1 {year}" for year in (2018, 2019, 2020)]
    got = write_all(tmp_path / "e1.tif", values, names=names)
    assert [one["mean"] for one in got] == pytest.approx(
        [np.nanmean(band.astype(float)) for band in values]
    )
    assert cog_validate(tmp_path / "e1.tif", strict=True)[:2] == (True, [])
    with rasterio.open(tmp_path / "e1.tif") as src:
        np.testing.assert_array_equal(src.read(), values)
        assert list(src.descriptions) == names
        assert src.units == ("year-1",) * 3
        assert float(src.tags(2)["STATISTICS_MEAN"]) == got[1]["mean"]


def test_many_bands_have_small_tiles(tmp_path: Path) -> None:
    values = np.zeros((240, 500, 20), np.float32)
    write_all(tmp_path / "a.tif", values, names=[str(n) for n in range(240)])
    with rasterio.open(tmp_path / "a.tif") as src:
        assert src.block_shapes[0] == (128, 128)


def test_failure_leaves_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't write"):
        write(tmp_path / "nowhere" / "a.tif", field(9, 9))
    # a folder of the name can't be replaced by a file
    (tmp_path / "b.tif").mkdir()
    with pytest.raises(StoreError, match="can't write"):
        write(tmp_path / "b.tif", field(9, 9))
    assert [p.name for p in tmp_path.iterdir()] == ["b.tif"]


def test_replaces(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", np.zeros((9, 9), np.float32))
    write(tmp_path / "a.tif", np.ones((9, 9), np.float32))
    with rasterio.open(tmp_path / "a.tif") as src:
        assert (src.read(1) == 1).all()
