"""The door: what is accepted, what is said when it's not, and one key for equal requests."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyproj import Geod, Transformer

from firnline.cache.request import Request, parse_interval
from firnline.errors import (
    BBoxError,
    CRSError,
    DatetimeError,
    GeometryError,
    InputError,
    TooLargeError,
)
from firnline.settings import Settings

SETTINGS = Settings(data_dir=Path("/nowhere"), _env_file=None)
AREA = {"bbox": [465000, -2300000, 496000, -2258000], "crs": "EPSG:3413"}


def parse(**inputs: Any) -> Request:
    return Request.parse(inputs, SETTINGS)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"crs": "EPSG:999999"}, CRSError, "EPSG:999999"),
        ({"crs": "3413"}, CRSError, "EPSG:3413"),
        ({"crs": "+proj=longlat"}, CRSError, "EPSG:3413"),
        ({"bbox": [1, 2, 3]}, InputError, "bbox"),
        ({"bbox": [496000, -2300000, 465000, -2258000]}, BBoxError, "empty or inverted"),
        ({"bbox": [465000, -2258000, 496000, -2300000]}, BBoxError, "empty or inverted"),
        ({"bbox": [465000, -2300000, 465000, -2258000]}, BBoxError, "empty or inverted"),
        ({"bbox": [math.nan, 0, 1, 1]}, InputError, "finite"),
        ({"bbox": [0, 0, math.inf, 1]}, InputError, "finite"),
        ({"crs": "OGC:CRS84"}, BBoxError, "degrees"),
        ({"bbox": None}, InputError, "one of bbox and geometry"),
        ({"geometry": {"type": "Polygon", "coordinates": []}}, InputError, "not both"),
        ({"datetime": "yesterday"}, DatetimeError, "2018-01-01/2020-12-31"),
        ({"datetime": "2020-01-01/2018-01-01"}, DatetimeError, "ends before it starts"),
        ({"datetime": "2018-13-01/.."}, DatetimeError, "2018-13-01"),
        ({"datetime": "2018-01-01T00:00:00/.."}, DatetimeError, "not accepted"),
        ({"variables": []}, InputError, "variables"),
        ({"variables": ["vx", "speed"]}, InputError, "variables.1"),
        ({"collection": "sentinel-2"}, InputError, "itslive-cubes"),
        ({"satellites": ["landsat 8"]}, InputError, "satellites"),
        ({"dt_days": [60, 10]}, InputError, "least"),
        ({"composite": "P1W1D"}, InputError, "P1Y"),
        ({"composite_method": "mode"}, InputError, "median"),
        ({"max_displacement": 0}, InputError, "max_displacement"),
        ({"max_error": -1}, InputError, "max_error"),
        ({"min_valid": 101}, InputError, "min_valid"),
        ({"min_valid": float("nan")}, InputError, "min_valid"),
        ({"collection": "velocity-mosaics", "max_error": 5}, InputError, "max_error is for image"),
        ({"composite": None, "strain": False, "max_displacement": 9}, InputError, "composite"),
        ({"composite": None}, InputError, "strain needs a composite"),
        ({"variables": ["v"]}, InputError, "vx and vy"),
        ({"pairs": False, "composite": None, "strain": False}, InputError, "nothing to store"),
        ({"strain": {"method": "guess"}}, InputError, "plane"),
        ({"strain": {"length_scale": -1}}, InputError, "length_scale"),
        ({"strain": {"gaps": "ignore"}}, InputError, "strict"),
        ({"strain": {"ice_temperature": -10}}, InputError, "kelvin"),
        ({"out_crs": "OGC:CRS84"}, InputError, "not projected"),
        ({"out_crs": "EPSG:2225"}, InputError, "not projected in metres"),  # US survey feet
        ({"resampling": "cubic"}, InputError, "bilinear"),
        ({"recompute_speed": True}, InputError, "recompute_speed is for v"),
        ({"format": "netcdf"}, InputError, "v3"),
        ({"area": 3}, InputError, "accepted: bbox"),
        ({"bbox": [-3e6, -3e6, 3e6, 3e6]}, TooLargeError, "FIRNLINE_MAX_AOI_KM2"),
    ],
)  # fmt: skip
def test_refusals_name_the_input(
    change: dict[str, Any], error: type[InputError], says: str
) -> None:
    with pytest.raises(error) as caught:
        parse(**{**AREA, **change})
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("geometry", "says"),
    [
        ({"type": "Point", "coordinates": [0, 0]}, "Polygon"),
        ({"type": "Polygon", "coordinates": "x"}, "coordinates"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "coordinates"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1], [1, 0], [0, 1], [0, 0]]]}, "valid"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 95], [1, 0], [0, 0]]]}, "degrees"),
        ({}, "Polygon"),
    ],
)
def test_bad_geometries(geometry: dict[str, Any], says: str) -> None:
    with pytest.raises(GeometryError, match=says):
        parse(geometry=geometry)


@pytest.mark.parametrize("box", [[-180, -90, 180, 90], [-180, -90, 180, -80], [0, 0, 100, 60]])
def test_the_globe_and_its_caps_are_too_large(box: list[float]) -> None:
    with pytest.raises(TooLargeError):
        parse(bbox=box)


@given(st.floats(-180, 170), st.floats(-89, 85), st.floats(0.1, 8), st.floats(0.1, 4))
def test_area_limit_is_of_the_true_area(west: float, south: float, dx: float, dy: float) -> None:
    box = (west, south, west + dx, south + dy)
    geod = Geod(ellps="WGS84")
    x = np.linspace(west, west + dx, 50)
    lons = np.concatenate([x, x[::-1]])
    lats = np.concatenate([np.full(50, south), np.full(50, south + dy)])
    area = abs(geod.polygon_area_perimeter(lons, lats)[0]) / 1e6
    limited = SETTINGS.model_copy(update={"max_aoi_km2": area * 0.98})
    with pytest.raises(TooLargeError):
        Request.parse({"bbox": box}, limited)
    Request.parse({"bbox": box}, SETTINGS.model_copy(update={"max_aoi_km2": area * 1.02}))


def test_a_box_across_the_antimeridian_is_one_small_area() -> None:
    request = parse(bbox=[179, -80, -179, -79.5])
    assert request.area.bounds == (179, -80, 181, -79.5)
    x, y = Transformer.from_crs("OGC:CRS84", "EPSG:3031", always_xy=True).transform(
        [179, -179, 180], [-80, -79.5, -79.7]
    )
    from firnline.crs import parse_crs

    left, bottom, right, top = request.area_in(parse_crs("EPSG:3031")).bounds
    assert left - 1 <= min(x)
    assert max(x) <= right + 1
    assert bottom - 1 <= min(y)
    assert max(y) <= top + 1
    assert right - left < 50_000


inputs = st.fixed_dictionaries(
    {"bbox": st.just([-50.0, 69.0, -49.0, 69.3])},
    optional={
        "datetime": st.sampled_from(
            ["2018-01-01/2020-12-31", "../2019-01-01T12:00:00.5Z", "../.."]
        ),
        "variables": st.permutations(["vx", "vy", "v_error"]),
        "satellites": st.lists(st.sampled_from(["L8", "S1A", "S2"]), max_size=4),
        "dt_days": st.sampled_from([None, [0, 60], [0.0, 60.0]]),
        "composite": st.sampled_from(["P1Y", "P1M", "year", "season", "P2W", "P16D", "all"]),
        "composite_method": st.sampled_from(["median", "mean"]),
        "max_displacement": st.sampled_from([None, 500]),
        "strain": st.sampled_from(
            [
                False,
                {},
                {"length_scale": 500},
                {"method": "plane"},
                {"gaps": "fit"},
                {"method": "logarithmic", "gaps": "strict", "ice_temperature": 260},
            ]
        ),
        "format": st.sampled_from(["v2", "v3"]),
        "resampling": st.sampled_from(["nearest", "bilinear"]),
        "pairs": st.booleans(),
    },
)


@given(inputs)
def test_the_canonical_form_is_its_own(asked: dict[str, Any]) -> None:
    """What is stored with a job or subset parses to the same request, JSON and back."""
    request = Request.parse(asked, SETTINGS)
    again = Request.parse(json.loads(json.dumps(request.to_inputs())), SETTINGS)
    assert again.key == request.key
    assert again.to_inputs() == request.to_inputs()


_ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "EPSG:3413", "P1Y", "P999999999999Y", "all", "../..", "0000", "Polygon"])
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["type", "coordinates", "method", "length_scale", "a"]), inner,
            max_size=3,
        )
    ),
    max_leaves=15,
)  # fmt: skip


@settings(max_examples=600)
@given(
    st.dictionaries(st.sampled_from([*Request.model_fields, "colour"]), _ANY, max_size=4),
    st.booleans(),
)
def test_nonsense_is_bad_input(asked: dict[str, Any], good: bool) -> None:
    """Whatever is sent: a request that is its own canonical form, or one line that says why not."""
    base = {"bbox": [-50, 69, -49.8, 69.2]} if good else {}
    try:
        request = Request.parse({**base, **asked}, SETTINGS)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert Request.parse(request.to_inputs(), SETTINGS).key == request.key


def test_equal_requests_have_one_key() -> None:
    plain = parse(bbox=[-50, 69, -49, 69.3])
    spelt = parse(
        bbox=[-50.0, 69.0, -49.0, 69.3], crs="EPSG:4326", datetime="../..",
        variables=["vy", "vx", "v_error", "vx"], strain={"length_scale": 500.0, "method": "plane"},
    )  # fmt: skip
    assert plain.key == spelt.key
    assert plain.subset_id == f"subset-{plain.key[:16]}"
    others = [
        parse(bbox=[-50, 69, -49, 69.31]),
        parse(bbox=[-50, 69, -49, 69.3], datetime="2018-01-01/.."),
        parse(bbox=[-50, 69, -49, 69.3], composite="P1M"),
        parse(bbox=[-50, 69, -49, 69.3], format="v2"),
        parse(bbox=[-50, 69, -49, 69.3], resampling="bilinear"),
        parse(bbox=[-50, 69, -49, 69.3], variables=["v", "vx", "vy"]),
        parse(bbox=[-50, 69, -49, 69.3], variables=["v", "vx", "vy"], recompute_speed=True),
        parse(bbox=[-50, 69, -49, 69.3], max_error=20),
        parse(bbox=[-50, 69, -49, 69.3], min_valid=20),
    ]
    assert len({plain.key, *(other.key for other in others)}) == 10
    assert parse(bbox=[-50, 69, -49, 69.3], resampling="nearest").key == plain.key


def test_keys_of_older_requests_stay() -> None:
    """Made before strain had any other input than method and length_scale."""
    request = parse(bbox=[-50, 69, -49, 69.3])
    assert request.to_inputs()["strain"] == {"method": "plane", "length_scale": 500.0}
    same = {"gaps": "fit", "ice_temperature": None}
    assert parse(bbox=[-50, 69, -49, 69.3], strain=same).key == request.key
    more = [{"gaps": "strict"}, {"ice_temperature": 263}, {"method": "nominal"}]
    keys = {parse(bbox=[-50, 69, -49, 69.3], strain=one).key for one in more}
    assert len(keys | {request.key}) == 4


def test_periods_have_one_spelling() -> None:
    area = {"bbox": [-50, 69, -49, 69.3]}
    assert parse(**area, composite="year").key == parse(**area).key
    assert parse(**area, composite="P12M").composite == "P1Y"
    assert parse(**area, composite="P1Y6M").key == parse(**area, composite="P18M").key
    asked = ({}, {"composite_method": "mean"}, {"max_displacement": 500}, {"composite": "season"})
    assert len({parse(**area, **more).key for more in asked}) == 4


def test_keys_stay_where_the_answer_does() -> None:
    """Without composites a request means what it did before there was a method to choose."""
    plain = {**AREA, "composite": None, "strain": False}
    assert parse(**plain).key.startswith("df13a0b763b4a0539f5c3afadcbc4040")
    other = {**plain, "format": "v2", "datetime": "2018-01-01/..", "variables": ["v"]}
    assert parse(**other).key.startswith("4594eedbfd2485928e23cbb67b9ebc3b")
    assert parse(**plain, composite_method="mean").key == parse(**plain).key
    # the default composite was a weighted mean then
    assert not parse(**AREA).key.startswith("31e4368aea8d2528")


def test_a_date_alone_is_the_whole_day() -> None:
    start, end = parse_interval("2018-01-01/2020-12-31")
    assert (start and start.isoformat()) == "2018-01-01T00:00:00+00:00"
    assert (end and end.isoformat()) == "2020-12-31T23:59:59.999999+00:00"
    assert parse_interval("2018-06-01") == parse_interval("2018-06-01/2018-06-01")
    assert parse_interval("2018-06-01T01:00:00+01:00/..") == (
        parse_interval("2018-06-01T00:00:00Z/..")
    )


def test_input_schemas_describe_every_input() -> None:
    schemas = Request.input_schemas()
    assert set(schemas) == set(Request.model_fields)
    assert "$ref" not in json.dumps(schemas)
    for name, about in schemas.items():
        assert about["description"], name
