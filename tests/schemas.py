"""The STAC schemas from the shared folder, offline; tests that need them skip where it is missing.

Test modules can't import each other by name in pytest's ``importlib`` mode: they load this file by
its path.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from jsonschema import Draft7Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7
from urllib3 import HTTPConnectionPool, HTTPResponse

REPO = Path(__file__).parent.parent
DATA = Path(os.environ.get("FIRNLINE_SHARED_DATA", REPO.parent / "shared" / "data"))
SCHEMAS = Path(os.environ.get("FIRNLINE_SHARED_SCHEMAS", DATA.parent / "schemas")) / "stac"

_CORE = "https://schemas.stacspec.org/v1.1.0"
_KINDS = {
    "Feature": f"{_CORE}/item-spec/json-schema/item.json",
    "Collection": f"{_CORE}/collection-spec/json-schema/collection.json",
}
ORDER = "https://stac-extensions.github.io/order/v1.0.0/schema.json"
_ORDER_SCHEMA = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {
        "properties": {
            "type": "object",
            "required": ["order:status"],
            "properties": {"order:status": {"enum": ["orderable", "ordered", "succeeded"]}},
        }
    },
}
"""What its page asks of items, of the values that are used here."""


class StacSchemas:
    """Validates STAC objects against the core schema and those of their extensions."""

    def __init__(self, folder: Path = SCHEMAS) -> None:
        index = json.loads((folder / "index.json").read_text())
        self.contents = {
            url.rstrip("#"): json.loads((folder / entry["file"]).read_text())
            for url, entry in index.items()
            if entry["file"].endswith(".json")
        }
        self.contents.setdefault(ORDER, _ORDER_SCHEMA)  # not among the shared ones
        self._registry: Registry[Any] = Registry().with_resources(
            [
                (url, Resource.from_contents(content, default_specification=DRAFT7))
                for url, content in self.contents.items()
            ]
        )
        self._validators: dict[str, Draft7Validator] = {}

    def _validator(self, url: str) -> Draft7Validator:
        if url not in self._validators:
            self._validators[url] = Draft7Validator(self.contents[url], registry=self._registry)
        return self._validators[url]

    def problems(self, document: dict[str, Any]) -> list[str]:
        """What is wrong with an item or collection; links, which are not stored, are assumed."""
        links = [{"rel": "collection", "href": "https://x"}] if "collection" in document else []
        document = {"links": links, **document}
        return [
            f"{document.get('id')}: {'/'.join(map(str, error.path))}: {error.message[:300]} ({url})"
            for url in (_KINDS[document["type"]], *document["stac_extensions"])
            for error in self._validator(url).iter_errors(document)
        ]


@contextmanager
def mapped_schemas(folder: Path = SCHEMAS) -> Iterator[None]:
    """Answers what is asked of other hosts by urllib3 (so by requests and pystac) from the folder.

    An address that the folder's index does not have is a 404, as it would be of its host.
    """
    index = json.loads((folder / "index.json").read_text())
    files = {url.rstrip("#"): (folder / entry["file"]).read_bytes() for url, entry in index.items()}
    files.setdefault(ORDER, json.dumps(_ORDER_SCHEMA).encode())
    ask = HTTPConnectionPool.urlopen

    def urlopen(self: Any, method: str, url: str, *args: Any, **options: Any) -> Any:
        if self.host in ("127.0.0.1", "localhost"):
            return ask(self, method, url, *args, **options)
        path = url if url.startswith("/") else urlsplit(url).path
        file = files.get(f"{self.scheme}://{self.host}{path}")
        return HTTPResponse(
            io.BytesIO(file or b""),
            headers={"Content-Type": "application/json"},
            status=404 if file is None else 200,
            preload_content=options.get("preload_content", True),
            request_url=url,
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HTTPConnectionPool, "urlopen", urlopen)
        yield
