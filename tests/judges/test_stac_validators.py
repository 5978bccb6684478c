"""stac-validator on every kind of document, stac-api-validator on the whole API."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import httpx
import pytest
import requests

from tests.judges.conftest import Judged

with warnings.catch_warnings():
    # The package moved to the name stac_valid, which stac-api-validator does not know yet.
    warnings.simplefilter("ignore")
    from stac_api_validator import validations
    from stac_validator.stac_validator import StacValidate

pytestmark = pytest.mark.usefixtures("schemas")


def told(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What stac-validator has to say against a document, by the core schema and extensions."""
    validator = StacValidate(links=False)
    valid = validator.validate_dict(document)
    (message,) = validator.message
    assert message["valid_stac"] == valid
    if not valid:
        return [message]
    assert set(document.get("stac_extensions", [])) < set(message["schema"])
    return []


@pytest.mark.parametrize("harvested", ["quick", "deep"])
def test_every_kind_of_item_is_valid(harvested: str, request: pytest.FixtureRequest) -> None:
    judged: Judged = request.getfixturevalue(harvested)
    found = httpx.get(f"{judged.url}/search", params={"limit": 1000}).json()
    items = {item["id"]: item for item in found["features"]}
    kinds = [*(cube.name for cube in judged.mirror.cubes)]
    for version in ("", "_V02"):
        kinds += [f"RGI05A_STATIC{version}", f"RGI05A_ANNUAL_2018{version}"]
    kinds += [id for id, item in items.items() if item["collection"] == "subsets"]
    assert len(items) == found["numberMatched"]
    for id in kinds:
        assert told(items[id]) == []


def test_the_catalog_and_its_collections_are_valid(deep: Judged) -> None:
    assert told(httpx.get(deep.url).json()) == []
    collections = httpx.get(f"{deep.url}/collections").json()["collections"]
    assert [each["id"] for each in collections] == ["itslive-cubes", "subsets", "velocity-mosaics"]
    for each in collections:
        assert told(each) == []


def test_a_wrong_item_is_found(deep: Judged) -> None:
    """The judge is awake: schemas of the core and of extensions are asked."""
    (item,) = httpx.get(f"{deep.url}/search?limit=1").json()["features"]
    assert "not of type 'string'" in told({**item, "id": 5})[0]["error_message"]
    properties = {**item["properties"], "proj:shape": "none"}
    assert "projection" in told({**item, "properties": properties})[0]["failed_schema"]


CLASSES = [
    *("core", "browseable", "collections", "features", "item-search"),
    *("item-search#sort", "item-search#fields", "item-search#filter"),
    *("features#sort", "features#fields", "features#filter"),
]
NORTH = '{"type":"Polygon","coordinates":[[[-180,0],[180,0],[180,90],[-180,90],[-180,0]]]}'


@pytest.mark.filterwarnings("ignore:get_all_items is deprecated")  # which the validator calls
@pytest.mark.parametrize("collection", ["itslive-cubes", "velocity-mosaics", "subsets"])
def test_stac_api_validator_has_no_errors(
    deep: Judged, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All it knows, but for query, whose numbers it sends as texts."""
    monkeypatch.setattr(validations, "validate_sort", _sorting_by_ends)
    items = httpx.get(f"{deep.url}/collections/{collection}/items").json()["features"]
    _, errors = validations.validate_api(
        root_url=deep.url,
        ccs_to_validate=CLASSES,
        collection=collection,
        geometry=NORTH,
        auth_bearer_token=None,
        auth_query_parameter=None,
        fields_nested_property="properties.proj:code",
        validate_pagination=len(items) > 1,
        query_config=validations.QueryConfig(*[None] * 13),
        transaction_collection=None,
        headers=None,
        open_assets_urls=False,
    )
    assert list(errors) == []


_validate_sort = validations.validate_sort
_retrieve = validations.retrieve


def _sorting_by_ends(*args: Any, **kwargs: Any) -> None:
    """The validator's own check, of items whose `datetime` is never null.

    Where it is, which STAC allows of items with an interval, the validator (0.6.8) fails itself:
    it sorts the values in Python, which compares no None. The sort extension leaves open where
    such items come; here they are sorted by the end of the interval, so that is what it gets.
    """

    def retrieve(*args: Any, **kwargs: Any) -> Any:
        status, body, headers = _retrieve(*args, **kwargs)
        for item in body["features"]:
            properties = item["properties"]
            properties["datetime"] = properties["datetime"] or properties["end_datetime"]
        return status, body, headers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(validations, "retrieve", retrieve)
        _validate_sort(*args, **kwargs)


def test_a_wrong_order_is_found(deep: Judged, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of sorting is awake, of items without `datetime` too."""

    asked = _retrieve

    def out_of_order(*args: Any, **kwargs: Any) -> Any:
        status, body, headers = asked(*args, **kwargs)
        body["features"].append(body["features"][0])
        return status, body, headers

    landing = httpx.get(deep.url).json()
    monkeypatch.setattr(sys.modules[__name__], "_retrieve", out_of_order)
    errors = validations.Errors()
    _sorting_by_ends(
        landing_page_body=landing,
        collection="itslive-cubes",
        errors=errors,
        warnings=validations.Warnings(),
        r_session=requests.Session(),
        context=validations.Context.ITEM_SEARCH_SORT,
        query_config=validations.QueryConfig(*[None] * 13),
    )
    assert len(list(errors)) == 5
    assert all("was not sorted in" in error for error in errors)


def test_the_geometry_of_every_item_finds_it(deep: Judged) -> None:
    found = httpx.get(f"{deep.url}/search", params={"limit": 1000}).json()["features"]
    assert len(found) > 10
    for item in found:
        body = {"intersects": item["geometry"], "limit": 1000}
        page = httpx.post(f"{deep.url}/search", json=body).raise_for_status().json()
        assert item["id"] in {each["id"] for each in page["features"]}
