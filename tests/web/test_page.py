"""The page in a real browser, against the stores that it shows."""

from __future__ import annotations

import io
import json
import re
import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import geopandas
import matplotlib
import numpy as np
import pytest
import xarray as xr
from PIL import Image
from pyproj import CRS, Transformer
from shapely.geometry import box

from firnline import keys
from firnline.cache import jobs
from firnline.cache.opening import subset_place
from firnline.service import Service

to_metres = Transformer.from_crs(4326, 3413, always_xy=True)
INSIDE = (-172_000, -2_282_000, -168_000, -2_278_000)  # where four cubes meet


def pairs_of(
    sample: Any, area: tuple[float, ...], first: str, last: str, least_valid: float = 0
) -> tuple[int, int]:
    """Image pairs of the cubes of EPSG:3413 that share some of an area, and these cubes."""
    found = cubes = 0
    for cube in sample.mirror.cubes:
        if "EPSG3413" not in cube.path:
            continue
        path = sample.mirror.root / cube.path
        if not path.exists():  # the catalog names one that does not exist
            continue
        with xr.open_zarr(path, chunks=None) as ds:
            x, y = ds.x.values, ds.y.values
            if (
                (x.max() + 60 > area[0])
                & (x.min() - 60 < area[2])
                & (y.max() + 60 > area[1])
                & (y.min() - 60 < area[3])
            ):
                day = ds.mid_date.values.astype("M8[D]")
                wanted = (day >= np.datetime64(first)) & (day <= np.datetime64(last))
                found += int((wanted & (ds.roi_valid_percentage.values >= least_valid)).sum())
                cubes += 1
    return found, cubes


def go_to(page: Any, area: tuple[float, ...], told: str = "image pairs in") -> None:
    page.click("text=By coordinates")
    page.select_option("#crs", "EPSG:3413")
    for id, value in zip(("west", "south", "east", "north"), area, strict=True):
        page.fill(f"#{id}", str(value))
    page.click("#use-coordinates")
    page.wait_for_selector(f"#estimate:has-text('{told}')")


def estimated(page: Any) -> tuple[int, int]:
    text = page.inner_text("#estimate").replace(",", "")
    found = re.match(r"(\d+) image pairs in (\d+) cube", text)
    assert found is not None, text
    return int(found[1]), int(found[2])


def period(page: Any) -> tuple[str, str]:
    """First and last day."""
    first, last = (
        datetime.strptime(text, "%b %Y").strftime("%Y-%m")
        for text in page.inner_text("#period-text").split(" – ")
    )
    end = (np.datetime64(last) + 1).astype("M8[D]") - 1
    return f"{first}-01", str(end)


def map_point(page: Any, share_x: float, share_y: float) -> tuple[float, float]:
    frame = page.locator("#map").bounding_box()
    return frame["x"] + frame["width"] * share_x, frame["y"] + frame["height"] * share_y


@pytest.mark.timeout(120)
def test_from_a_drawn_box_to_the_numbers(sample: Any, served: Any, open_page: Any) -> None:
    page = open_page("/")
    assert page.url == f"{served.url}/map"  # browsers are led there
    go_to(page, INSIDE)
    page.wait_for_timeout(300)

    # a box is drawn within what is shown now
    page.click("#draw-box")
    page.mouse.click(*map_point(page, 0.4, 0.4))
    page.mouse.move(*map_point(page, 0.55, 0.55))
    page.mouse.click(*map_point(page, 0.6, 0.6))
    page.wait_for_selector("#area-text:has-text('Box,')")
    drawn = tuple(float(page.input_value(f"#{id}")) for id in ("west", "south", "east", "north"))
    assert INSIDE[0] < drawn[0] < drawn[2] < INSIDE[2]
    assert INSIDE[1] < drawn[1] < drawn[3] < INSIDE[3]

    # its image pairs, and how they change with the period
    page.wait_for_selector("#estimate:has-text('image pairs in')")
    whole = period(page)
    assert estimated(page) == pairs_of(sample, drawn, *whole)
    page.focus("#from")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    first, last = period(page)
    assert (np.datetime64(first, "M") - np.datetime64(whole[0], "M")).astype(int) == 5
    assert last == whole[1]
    assert estimated(page) == pairs_of(sample, drawn, first, last)
    assert estimated(page)[0] < pairs_of(sample, drawn, *whole)[0]

    # the job, to its end
    page.click("button.primary")
    page.wait_for_selector("#job-message:has-text('Done')", timeout=60_000)
    page.wait_for_selector("#controls:not([hidden])")
    subset = page.input_value("#subset")
    folder = subset_place(served.service.engine, served.settings, subset)
    composite = xr.open_zarr(folder / "composite.zarr").load()
    assert page.inner_text("#time-text") == "2020"

    # the numbers at a point
    page.mouse.click(*map_point(page, 0.47, 0.52))
    page.wait_for_selector("#plot canvas")
    place = re.match(r"([\d.]+)° N, ([\d.]+)° W", page.inner_text("#series h2"))
    assert place is not None
    x, y = to_metres.transform(-float(place[2]), float(place[1]))
    page.click("#series summary")
    rows = [
        [float(cell) for cell in row.locator("td").all_inner_texts()[1:]]
        for row in page.locator("#series tbody tr").all()
    ]
    here = composite.sel(x=x, y=y, method="nearest")
    expected = np.stack([here.v, here.v_error], axis=1)
    assert len(rows) == 3
    np.testing.assert_allclose(rows, expected[np.isfinite(expected[:, 0])], rtol=1e-6)
    plotted = page.evaluate("document.getElementById('plot').plot.data.map(each => [...each])")
    pairs = xr.open_zarr(folder / "pairs.zarr").load().sel(x=x, y=y, method="nearest")
    speed = np.hypot(pairs.vx, pairs.vy).dropna("mid_date")
    times, values, errors = (np.array(each, float) for each in plotted[:3])
    shown = np.isfinite(values)
    assert shown.sum() == len(speed) > 10
    seconds = speed.mid_date.values.astype("M8[ms]").astype(float) / 1000
    np.testing.assert_allclose(times[shown], seconds, atol=0.01)
    np.testing.assert_allclose(values[shown], speed, rtol=1e-6)
    np.testing.assert_allclose(errors[shown], pairs.v_error.dropna("mid_date"), rtol=1e-6)
    page.click("#series-close")

    # the layer: the colour at that point is that of the speed in the store
    page.uncheck("#arrows")
    page.focus("#opacity")
    page.keyboard.press("End")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(300)
    at = map_point(page, 0.47, 0.52)
    picture = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
    high = float(page.input_value("#high"))
    shade = round(float(here.v[-1]) / high * 255)
    colour = np.array(matplotlib.colormaps["turbo"](shade)[:3]) * 255
    np.testing.assert_allclose(picture[round(at[1]), round(at[0])], colour, atol=2)
    assert page.inner_text("#legend figcaption") == "Speed, m/yr"

    # elsewhere: what is offered to copy holds the address of the store
    page.click("text=Use it elsewhere")
    assert f"{served.url}/files/{subset}/{folder.name}/composite.zarr" in page.inner_text(
        "#snippet"
    )


def test_areas_from_files(open_page: Any, tmp_path: Path) -> None:
    page = open_page()
    lonlat = box(-49.32, 69.1, -49.2, 69.14)
    metres = geopandas.GeoDataFrame(geometry=[lonlat], crs=4326).to_crs(3413)
    metres.to_file(tmp_path / "area.shp")
    with zipfile.ZipFile(tmp_path / "area.zip", "w") as archive:
        for path in tmp_path.glob("area.*"):
            if path.suffix != ".zip":
                archive.write(path, path.name)
    metres.to_file(tmp_path / "area.gpkg")
    utm = metres.to_crs(32622)  # a CRS by its code, and one that only its WKT tells
    utm.to_file(tmp_path / "layers.gpkg", layer="utm")
    own = CRS.from_proj4("+proj=laea +lat_0=69 +lon_0=-49 +datum=WGS84 +units=m")
    metres.to_crs(own).to_file(tmp_path / "layers.gpkg", layer='a "quoted" one')
    (tmp_path / "none.gpkg").write_bytes(b"no database")
    (tmp_path / "area.geojson").write_text(
        json.dumps({"type": "Feature", "properties": {}, "geometry": lonlat.__geo_interface__})
    )
    (tmp_path / "point.geojson").write_text('{"type": "Point", "coordinates": [0, 0]}')
    (tmp_path / "none.json").write_text("no JSON")
    counts = []
    for name in ("area.geojson", "area.zip", "area.gpkg", "layers.gpkg"):
        page.set_input_files("#upload", tmp_path / name)
        page.wait_for_selector(f"#area-text:has-text('{name}')")
        page.wait_for_selector("#estimate:has-text('image pairs in')")
        bounds = [float(page.input_value(f"#{id}")) for id in ("west", "south", "east", "north")]
        np.testing.assert_allclose(bounds, lonlat.bounds, atol=1e-6)
        counts.append(estimated(page))
    assert len(set(counts)) == 1
    unread = "can't be read"
    for name, told in [
        ("point.geojson", "holds no polygon"),
        ("none.json", unread),
        ("none.gpkg", unread),
    ]:
        page.set_input_files("#upload", tmp_path / name)
        page.wait_for_selector(f'#area-text:has-text("{told}")')


def test_pairs_are_filtered(sample: Any, served: Any, open_page: Any) -> None:
    page = open_page()
    go_to(page, INSIDE)
    every, _ = estimated(page)
    page.click("text=Options")
    page.fill("#min-valid", "40")
    page.wait_for_selector(f"#estimate:not(:has-text('{every} image pairs')):has-text('pairs in')")
    valid = pairs_of(sample, INSIDE, *period(page), least_valid=40)
    assert estimated(page) == valid
    assert 0 < valid[0] < every

    page.fill("#max-error", "30.5")
    page.wait_for_selector(f"#estimate:has-text('At most {valid[0]} image pairs in')")
    page.fill("#max-dt", "90")
    page.fill("#satellites", "l8, s1")
    with page.expect_response("**/execution") as answer:
        page.click("button.primary")
    job = jobs.get(served.service.engine, answer.value.json()["jobID"])
    filters = {"min_valid": 40, "max_error": 30.5, "dt_days": [0, 90], "satellites": ["L8", "S1"]}
    assert {name: job.request[name] for name in filters} == filters


def test_views_and_phones(open_page: Any) -> None:
    """Each view draws its coast; a phone has nothing beside its screen."""
    page = open_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
    seen = set()
    for name in ("Arctic", "Antarctic", "World"):
        page.click(f"#views >> text={name}")
        assert page.get_attribute(f"#views >> text={name}", "aria-pressed") == "true"
        page.wait_for_load_state("networkidle")
        page.wait_for_timeout(300)
        picture = Image.open(io.BytesIO(page.locator("#map").screenshot())).convert("RGB")
        colours = {colour: count for count, colour in picture.getcolors(2**24)}
        land, sea = colours.get((0x26, 0x32, 0x3B), 0), colours.get((0x0F, 0x17, 0x1D), 0)
        assert min(land, sea) > 0.05 * picture.width * picture.height, name
        seen.add(land)
    assert len(seen) == 3
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_the_keyboard_is_enough(open_page: Any, served: Any) -> None:
    """From the address bar to an estimate without a mouse, and what has the focus is named."""
    page = open_page()
    named = []
    for _ in range(12):
        page.keyboard.press("Tab")
        named.append(
            page.evaluate(
                "(({ariaLabel, innerText, labels}) => "
                "(ariaLabel || innerText || labels?.[0]?.innerText || '').trim())"
                "(document.activeElement)"
            )
        )
    assert all(named), named
    assert named[0] == "Skip to the form"
    assert {"Box", "Polygon", "This view", "Arctic"} <= set(named)


def test_a_key_and_a_job_that_is_stopped(sample: Any, browser: Any, tmp_path: Path) -> None:
    """Of cubes that were not read: no pairs are made up. The browser asks for the key."""
    settings = sample.settings(tmp_path / "data", anonymous_scopes=("read",))
    with Service(settings, port=0, worker=False, harvest=False) as service:
        _, key = keys.add(service.engine, "someone", ["materialise"])
        for given, told in [
            ("not the key", "#estimate:has-text('API key is not valid here')"),
            (key, "#job-message:has-text('0 %: waiting')"),
        ]:
            credentials = {"username": "any", "password": given}  # typed where Chromium asks
            page = browser.new_context(http_credentials=credentials).new_page()
            page.goto(f"{service.url}/map")
            go_to(page, INSIDE, "not known before a deep harvest")
            assert re.match("Image pairs of 4 cubes that", page.inner_text("#estimate"))
            assert not page.is_visible("#months")
            first, last = period(page)
            months = np.datetime64(last, "M") - np.datetime64(first, "M")
            assert months.astype(int) == 35
            page.click("button.primary")
            page.wait_for_selector(told)
        page.click("#job-cancel")
        page.wait_for_selector("#job-message:has-text('Stopped.')")
        (job,) = jobs.recent(service.engine, 10)
        assert job.status == "dismissed"
        for context in browser.contexts:
            context.close()
