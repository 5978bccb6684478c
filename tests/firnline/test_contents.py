"""The JSON of items as databases keep it."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from firnline import contents
from firnline.contents import pack, unpack
from firnline.errors import DatabaseError

TYPICAL = Path(contents.__file__).with_name("typical_items.ndjson")
# A row as version 0010 of the schema keeps it.
KEPT = bytes.fromhex(
    "28b52ffd2457350100487d6964223a22617d7d08003b7a38289501f65703488a51a8730a2815198801ac5f55376a10480ecf90"
)
ITEM = b'{"assets":{},"collection":"itslive-cubes","id":"a","properties":{"itslive:rgi_code":5}}'


@given(st.binary(max_size=3_000))
def test_what_is_packed_comes_back(content: bytes) -> None:
    assert unpack(pack(content)) == content


def test_the_dictionary_stays() -> None:
    """What databases hold was packed with these bytes; change them, and nobody can read it."""
    digest = hashlib.sha256(TYPICAL.read_bytes()).hexdigest()
    assert digest == "d65906d318c58c578bd063df67f58edbeaf1ff99be51bc5b9355e593fcc2dfc1"
    assert unpack(KEPT) == ITEM


def test_what_most_items_say_takes_no_room() -> None:
    """A cube that differs in its place, name and numbers: less than a tenth of its JSON."""
    item = orjson.loads(TYPICAL.read_bytes().splitlines()[-1])
    item["id"] = "another"
    item["bbox"] = [12.345678901234567, -70.0, 13.0, -69.12345678901234]
    item["properties"]["itslive:granule_count"] = 12_345
    content = orjson.dumps(item)
    assert len(content) > 5_000
    assert len(pack(content)) < len(content) / 10 < len(zstandard.compress(content))


def test_what_is_no_packed_item_is_an_error() -> None:
    packed = pack(ITEM)
    other = zstandard.ZstdCompressionDict(
        TYPICAL.read_bytes()[::-1], dict_type=zstandard.DICT_TYPE_RAWCONTENT
    )
    foreign = zstandard.ZstdCompressor(dict_data=other, write_checksum=True).compress(
        TYPICAL.read_bytes()[::-1][500:2_000]
    )
    for wrong in (b"", ITEM, packed[:-1], packed[:-1] + bytes([packed[-1] ^ 1]), foreign):
        with pytest.raises(DatabaseError, match="a stored item can't be read"):
            unpack(wrong)


def test_by_many_threads() -> None:
    each = [ITEM * n for n in range(1, 400)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda content: unpack(pack(content)), each)) == each
