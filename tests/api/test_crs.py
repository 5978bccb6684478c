"""Areas of interest in the CRSs that glaciologists think in, against the CRS's own plane."""

from __future__ import annotations

import json

import numpy as np
import pytest
import shapely
from pyproj import Transformer
from sqlalchemy import Engine

from firnline.footprint import footprints
from tests.api.conftest import Client, make_item, put

URI = "http://www.opengis.net/def/crs/EPSG/0/{}"


def squares(epsg: int, count: int = 300) -> dict[str, shapely.Polygon]:
    rng = np.random.default_rng(epsg)
    low, high = ((-2e6, -2e6), (2e6, 2e6)) if epsg < 4000 else ((3e5, 7e6), (6e5, 7.9e6))
    corners = rng.uniform(low, high, (count, 2))
    return {f"s{n}": shapely.box(x, y, x + 5e4, y + 5e4) for n, (x, y) in enumerate(corners)}


@pytest.mark.parametrize("epsg", [3413, 3031, 32622])
def test_boxes_and_polygons_are_those_of_the_crs(client: Client, engine: Engine, epsg: int) -> None:
    """Near the pole a box in degrees is no box here: only the CRS's own plane knows."""
    known = squares(epsg)
    outlines = footprints(list(known.values()), f"EPSG:{epsg}")
    put(engine, [make_item(id, o) for id, o in zip(known, outlines, strict=True)])
    middle = shapely.MultiPolygon(list(known.values())).centroid
    for width in (1.5e5, 6e5):
        area = middle.buffer(width, cap_style="square")
        # What only touches may go either way by the 100 m to which outlines are drawn.
        sure = {id for id, square in known.items() if square.intersection(area).area > 1e8}
        near = {id for id, square in known.items() if square.distance(area) < 1e3}
        box = [round(v, 3) for v in area.bounds]
        text = ",".join(map(str, box))
        answers = [
            client.ids(**{"bbox": text, "bbox-crs": f"EPSG:{epsg}", "limit": 1_000}),
            client.ids(**{"bbox": text, "bbox-crs": URI.format(epsg), "limit": 1_000}),
            client.ids(bbox=text, crs=f"EPSG:{epsg}", limit=1_000),
            client.ids(
                intersects=json.dumps(shapely.geometry.mapping(area)),
                crs=f"EPSG:{epsg}",
                limit=1_000,
            ),
            client.posted_ids(**{"bbox": box, "bbox-crs": f"EPSG:{epsg}"}),
        ]
        for got in answers:
            assert sure <= set(got) <= near
            assert set(got) == set(answers[0])
        assert len(sure) > 1


def test_points_and_lines(client: Client, engine: Engine) -> None:
    known = squares(3413)
    outlines = footprints(list(known.values()), "EPSG:3413")
    put(engine, [make_item(id, o) for id, o in zip(known, outlines, strict=True)])
    line = shapely.LineString([(-1.9e6, 5e5), (1.9e6, -7e5)])  # past the pole, over 180 degrees
    hit = {id for id, s in known.items() if s.buffer(-500).intersects(line)}
    near = {id for id, s in known.items() if s.buffer(500).intersects(line)}
    got = client.posted_ids(intersects=shapely.geometry.mapping(line), crs="EPSG:3413")
    assert hit <= set(got) <= near
    assert len(hit) > 1
    point = known["s7"].centroid
    same = {id for id, s in known.items() if s.intersects(point)}
    got = client.posted_ids(intersects=shapely.geometry.mapping(point), crs="EPSG:3413")
    assert set(got) == same


def test_crs84_is_the_default(client: Client, engine: Engine) -> None:
    put(engine, [make_item("a", shapely.box(0, 0, 1, 1))])
    for crs in ("OGC:CRS84", "http://www.opengis.net/def/crs/OGC/1.3/CRS84", "EPSG:4326"):
        assert client.ids(**{"bbox": "0.5,0.5,2,2", "bbox-crs": crs}) == ["a"]


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"bbox": "0,0,1,1", "bbox-crs": "EPSG:0"}, "EPSG:0"),
        ({"bbox": "0,0,1,1", "bbox-crs": "polar"}, "polar"),
        ({"bbox": "0,0,1,1", "crs": "EPSG:4269"}, "geographic"),
        ({"bbox": "0,0,1,1", "crs": "EPSG:3413", "bbox-crs": "EPSG:3413"}, "bbox-crs"),
        ({"bbox": "2,0,1,1", "crs": "EPSG:3413"}, "left"),
        ({"bbox": "0,0,0,1,1,1", "crs": "EPSG:3413"}, "4"),
        ({"bbox": "0,0,1e30,1", "crs": "EPSG:3413"}, "bbox: the coordinates are not on Earth"),
        ({"bbox": "0,0,1,1", "bbox-crs": "EPSG:5773"}, "bbox-crs: crs 'EPSG:5773' is a Vertical"),
        ({"bbox": "0,0,1,1", "crs": "EPSG:4978"}, "Geocentric"),
        # URIs mean the order of the axes, here latitude or northing first
        ({"bbox": "0,0,1,1", "bbox-crs": URI.format(4326)}, "by its code, EPSG:4326, x is"),
        ({"bbox": "0,0,1,1", "bbox-crs": URI.format(32661)}, "y before x"),
        ({"bbox": "0,0,1,1", "bbox-crs": URI.format("x/y")}, "no URI as http://"),
        ({"bbox": "0,0,1,1", "bbox_crs": "EPSG:3413"}, "bbox_crs"),
        ({"intersects": '{"type":"Point","coordinates":[1e300,0]}', "crs": "EPSG:3413"}, "far"),
    ],
)
def test_refusals(client: Client, parameters: dict[str, str], word: str) -> None:
    assert word in client.problem("GET", "/search", 400, params=parameters)["detail"]


def test_the_transformer_agrees(client: Client, engine: Engine) -> None:
    """A box of one metre around a known place: Jakobshavn's front, by pyproj."""
    x, y = Transformer.from_crs(4326, 3413, always_xy=True).transform(-49.9, 69.17)
    put(engine, [make_item("here", shapely.box(-49.91, 69.16, -49.89, 69.18))])
    assert client.ids(bbox=f"{x - 1},{y - 1},{x + 1},{y + 1}", crs="EPSG:3413") == ["here"]
    assert client.ids(bbox=f"{x + 9e3},{y},{x + 9.1e3},{y + 1}", crs="EPSG:3413") == []
