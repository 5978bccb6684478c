"""The picture's size, what is grey in it, which way is up, and what it refuses.

How it looks was looked at; these keep it from breaking.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from numpy.typing import NDArray

from firnline.cache import quicklook as module
from firnline.cache.quicklook import DPI, MISSING_COLOUR, figure_size, write_quicklook
from firnline.cache.strain import strain_rates
from firnline.errors import CRSError, InputError, StoreError

GREY = np.array(to_rgb(MISSING_COLOUR))


def scene(ny: int = 40, nx: int = 50) -> dict[str, Any]:
    """Flow to the east that grows eastwards; nothing known in the western half."""
    x = 4e5 + 120.0 * np.arange(nx)
    y = -2e6 - 120.0 * np.arange(ny)
    vx = np.tile(np.geomspace(5, 3000, nx), (ny, 1))
    vx[:, : nx // 2] = np.nan
    vy = 0.1 * vx
    strain = strain_rates(vx, vy, dx=120, dy=-120, radius=1)
    return {
        "vx": vx,
        "vy": vy,
        "longitudinal": strain["longitudinal"],
        "e1": strain["e1"],
        "e2": strain["e2"],
        "theta": strain["theta"],
        "x": x,
        "y": y,
        "crs": 3413,
        "title": "A glacier",
        "subtitle": "of the test",
        "credit": "nobody",
    }


def draw(path: Path, **change: Any) -> NDArray[np.floating[Any]]:
    write_quicklook(path, **{**scene(), **change})
    picture: NDArray[np.floating[Any]] = imread(path)[..., :3]
    return picture


def at(
    picture: NDArray[np.floating[Any]], shape: tuple[int, int], panel: int, across: float, up: float
) -> NDArray[np.floating[Any]]:
    """Colours around a place in a panel, given as fractions of its width and height."""
    width, height = module._panel(shape)
    left = module._LEFT + panel * (width + module._GAP)
    col = round((left + across * width) * DPI)
    row = picture.shape[0] - round((module._BOTTOM + up * height) * DPI)
    patch: NDArray[np.floating[Any]] = picture[row - 3 : row + 4, col - 3 : col + 4].reshape(-1, 3)
    return patch


def is_grey(patch: NDArray[np.floating[Any]]) -> bool:
    return bool((np.abs(patch - GREY).max(1) < 0.01).all())


@pytest.mark.parametrize("shape", [(2, 2), (20, 30), (40, 50), (30, 200), (200, 30), (1500, 1400)])
def test_png_of_the_stated_size_shows_where_data_is(tmp_path: Path, shape: tuple[int, int]) -> None:
    path = tmp_path / "a.png"
    write_quicklook(path, **scene(*shape))
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    picture = imread(path)
    assert (picture.shape[1], picture.shape[0]) == figure_size(shape)
    assert max(picture.shape) < 2000
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.parametrize("panel", [0, 1])
def test_missing_is_grey_and_data_is_not(tmp_path: Path, panel: int) -> None:
    picture = draw(tmp_path / "a.png")
    assert is_grey(at(picture, (40, 50), panel, 0.25, 0.6))
    assert not is_grey(at(picture, (40, 50), panel, 0.75, 0.6))


@pytest.mark.parametrize(("flip_y", "flip_x"), [(True, False), (False, True), (True, True)])
def test_north_is_up_whichever_way_the_rows_run(tmp_path: Path, flip_y: bool, flip_x: bool) -> None:
    given = scene()
    for name in ("vx", "vy", "longitudinal", "e1", "e2", "theta"):
        given[name] = given[name].copy()
        given[name][30:] = np.nan  # the south is missing
    one = draw(tmp_path / "a.png", **given)
    assert is_grey(at(one, (40, 50), 0, 0.8, 0.2))
    assert not is_grey(at(one, (40, 50), 0, 0.8, 0.8))
    rows = slice(None, None, -1 if flip_y else 1)
    cols = slice(None, None, -1 if flip_x else 1)
    for name in ("vx", "vy", "longitudinal", "e1", "e2", "theta"):
        given[name] = given[name][rows, cols]
    given["y"], given["x"] = given["y"][rows], given["x"][cols]
    two = draw(tmp_path / "b.png", **given)
    for panel, across, up in ((0, 0.8, 0.2), (0, 0.2, 0.8), (1, 0.8, 0.2)):
        assert is_grey(at(two, (40, 50), panel, across, up))
    assert not is_grey(at(two, (40, 50), 0, 0.8, 0.8))


def test_extension_is_green_and_compression_purple(tmp_path: Path) -> None:
    strain = np.full((40, 50), 0.02)
    strain[:, 25:] = -0.02
    plain = {"longitudinal": strain, "e1": None, "e2": None, "theta": None}
    picture = draw(tmp_path / "a.png", **plain)
    west, east = (at(picture, (40, 50), 1, across, 0.5).mean(0) for across in (0.2, 0.8))
    assert west[1] > max(west[0], west[2]) + 0.1
    assert east[1] < min(east[0], east[2]) - 0.1


@pytest.mark.parametrize("name", ["e1", "effective"])
def test_other_rates(tmp_path: Path, name: str) -> None:
    none = {"longitudinal": None, "e1": None, "e2": None, "theta": None}
    picture = draw(tmp_path / "a.png", **{**none, name: np.full((40, 50), 0.02)})
    assert not is_grey(at(picture, (40, 50), 1, 0.2, 0.5))


@pytest.mark.parametrize("shape", [(40, 50), (200, 30)])
def test_speed_alone(tmp_path: Path, shape: tuple[int, int]) -> None:
    given = scene(*shape)
    for name in ("longitudinal", "e1", "e2", "theta"):
        del given[name]
    write_quicklook(tmp_path / "a.png", **given)
    picture = imread(tmp_path / "a.png")[..., :3]
    assert (picture.shape[1], picture.shape[0]) == figure_size(shape, panels=1)


def test_nothing_to_show(tmp_path: Path) -> None:
    nothing = np.full((40, 50), np.nan)
    picture = draw(tmp_path / "a.png", vx=nothing, vy=nothing, longitudinal=nothing)
    assert is_grey(at(picture, (40, 50), 0, 0.75, 0.6))
    still = np.zeros((40, 50))
    picture = draw(tmp_path / "b.png", vx=still, vy=still, longitudinal=still, e1=still)
    assert not is_grey(at(picture, (40, 50), 0, 0.75, 0.6))


def test_long_texts_stay_inside(tmp_path: Path) -> None:
    long = "a glacier of many words " * 40
    picture = draw(tmp_path / "a.png", title=long, subtitle=long, credit=long)
    edge = round(0.1 * DPI)
    assert (picture[:, -edge:] == 1).all()
    assert (picture[:, :edge] == 1).all()


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"vy": np.ones((4, 4))}, InputError, "vy"),
        ({"e1": np.ones((4, 4))}, InputError, "e1"),
        ({"x": np.ones(3)}, InputError, "3 x"),
        ({"vx": np.ones(3)}, InputError, "shape of vx"),
        ({"crs": "nowhere"}, CRSError, "unreadable CRS"),
    ],
)
def test_misfits(
    tmp_path: Path, change: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        draw(tmp_path / "a.png", **change)
    assert not list(tmp_path.iterdir())


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="can't write"):
        draw(tmp_path / "nowhere" / "a.png")
