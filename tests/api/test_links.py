import json

import orjson
import pytest

from firnline.api.links import Base
from firnline.items import CUBES, MOSAICS, SUBSETS

BASE = Base("https://example.org/stac")


def test_item_links_go_into_the_stored_bytes() -> None:
    item = json.loads(BASE.with_item_links(b'{"id":"a b/c"}', "cubes", "a b/c"))
    place = "https://example.org/stac/collections/cubes"
    assert item["id"] == "a b/c"
    assert {link["rel"]: link["href"] for link in item["links"]} == {
        "self": f"{place}/items/a%20b%2Fc",
        "parent": place,
        "collection": place,
        "root": "https://example.org/stac/",
    }


@pytest.mark.parametrize(
    ("collection", "id", "orderable"),
    [
        (CUBES, "ITS_LIVE_vel_EPSG3413_G0120_X0_Y0", True),
        (MOSAICS, "RGI05A_ANNUAL_2018", True),
        (MOSAICS, "RGI05A_ANNUAL_2018_V02", False),  # the newest version is what is read
        (SUBSETS, "subset-0", False),
    ],
)
def test_what_can_be_materialised_says_how(collection: str, id: str, orderable: bool) -> None:
    links = json.loads(BASE.with_item_links(b'{"id":"a"}', collection, id))["links"]
    order = [link["href"] for link in links if link["rel"] == "order"]
    assert order == ["https://example.org/stac/processes/materialise"] * orderable


@pytest.mark.parametrize("own", [[], [{"rel": "derived_from", "href": "x"}]])
def test_stored_links_are_kept_after_the_inferred(own: list[dict[str, str]]) -> None:
    content = orjson.dumps({"id": "a", "links": own})
    links = json.loads(BASE.with_item_links(content, "c", "a"))["links"]
    assert [link["rel"] for link in links[:4]] == ["self", "parent", "collection", "root"]
    assert links[4:] == own


@pytest.mark.parametrize(
    "content",
    [
        {"id": "a", "properties": {"links": [1]}},
        {"id": "a", "properties": {"links": [1], "x": 2}},
        {"id": 'a","links":[', "title": '"links":[]}'},
    ],
)
def test_links_deeper_inside_or_in_text_are_not_the_documents(content: dict[str, object]) -> None:
    reply = json.loads(BASE.with_item_links(orjson.dumps(content), "c", "a"))
    assert len(reply.pop("links")) == 4
    assert reply == content


def test_addresses_of_the_service_are_resolved() -> None:
    stored = orjson.dumps({"href": "firnline:/files/s/g/cog_v.tif", "text": "see firnline:/x"})
    assert json.loads(BASE.resolve(stored)) == {
        "href": "https://example.org/stac/files/s/g/cog_v.tif",
        "text": "see firnline:/x",
    }


def test_a_hostile_host_stays_inside_its_string() -> None:
    base = Base('http://x","evil":"')
    item = json.loads(base.resolve(base.with_item_links(b'{"a":"firnline:/f"}', "c", "i")))
    assert set(item) == {"a", "links"}
