"""The image pairs of a cube, from the index: no cube is read to answer.

``GET /collections/itslive-cubes/items/{id}/pairs`` gives them by mid-date, page by page, as JSON
(one object a pair) or as Parquet (one row a pair).
"""

from __future__ import annotations

import binascii
import hashlib
import io
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hmac import compare_digest
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, urlencode

import attr
import numpy as np
import orjson
from fastapi import APIRouter, Depends, Path, Query
from sqlalchemy import Connection, Engine, select
from stac_fastapi.types.search import APIRequest
from starlette.requests import Request
from starlette.responses import Response

from firnline.api import paging, parameters
from firnline.api.errors import RESPONSES
from firnline.api.instants import parse_datetime
from firnline.api.links import GEOJSON, JSON, Base, JSONBytes, Link
from firnline.database import get_item, reading
from firnline.errors import ConflictError, InputError, NotFoundError, TokenError
from firnline.items import CUBES
from firnline.pairs import PairColumns, PairFilter, count_pairs, read_pairs
from firnline.settings import Settings
from firnline.tables import cubes

if TYPE_CHECKING:
    import pyarrow as pa

PARQUET = "application/vnd.apache.parquet"
DEFAULT_LIMIT, MAX_LIMIT = 1_000, 100_000
_SEAL = 12  # bytes
_LONGEST_LIST = 100


@attr.s
class PairsParameters(APIRequest):
    """Path and query of the pairs of a cube."""

    item_id: Annotated[str, Path(description="Id of a cube")] = attr.ib()
    datetime: Annotated[
        str | None,
        Query(
            description="Only pairs whose mid-date lies in this RFC 3339 instant or interval, "
            "open on one side with '..'.",
            examples=["2018-01-01T00:00:00Z/2018-12-31T23:59:59Z"],
        ),
    ] = attr.ib(default=None)
    satellites: Annotated[
        str | None,
        Query(
            description="Only pairs whose both images are of these satellites, comma-separated; "
            "S2 stands for S2A and S2B.",
            examples=["L8,S2"],
        ),
    ] = attr.ib(default=None)
    dt_days: Annotated[
        str | None,
        Query(
            description="Only pairs whose images are so many days apart: least,most.",
            examples=["0,60"],
        ),
    ] = attr.ib(default=None)
    limit: Annotated[
        int,
        Query(ge=1, description=f"Pairs in a page; at most {MAX_LIMIT:,}, more is taken for that."),
    ] = attr.ib(default=DEFAULT_LIMIT)
    token: Annotated[str | None, Query(description="Taken from a `next` link.")] = attr.ib(
        default=None
    )
    f: Annotated[str, Query(description="`json` or `parquet`.")] = attr.ib(default="json")


def create_router(engine: Engine, settings: Settings) -> APIRouter:
    """The routes of the pairs."""
    router = APIRouter(tags=["Image pairs"])
    key = paging.key_for(settings.database)

    @router.get(
        f"/collections/{CUBES}/items/{{item_id}}/pairs",
        summary="Image pairs of a cube",
        response_class=Response,
        responses={
            200: {"content": {JSON: {}, PARQUET: {}}},
            409: {**RESPONSES["4XX"], "description": "The cube has not been read yet"},
        },
    )
    def get_pairs(
        request: Request, asked: Annotated[PairsParameters, Depends(PairsParameters)]
    ) -> Response:
        parameters.check_query(request, PairsParameters)
        if asked.f not in ("json", "parquet"):
            raise InputError(f"f {asked.f[:40]!r} is not known; accepted: json, parquet")
        where = _where(asked)
        limit = min(asked.limit, MAX_LIMIT)
        id = parameters.stored_text(asked.item_id)
        with reading(engine) as connection:
            read = _deep_row(connection, id)
            sealed = orjson.dumps([id, read.etag, str(read.read_at), _text(where)])
            after = -1 if asked.token is None else _decode(asked.token, sealed, key)
            matched = count_pairs(connection, [id], where)[id]
            pairs, last, more = _page(connection, id, where, after, limit)
        base = Base.of(request, settings.public_url)
        here = f"{base.item(CUBES, id)}/pairs"
        query = f"?{request.url.query}" if request.url.query else ""
        following = _following(request, here, _encode(last, sealed, key)) if more else None
        if asked.f == "parquet":
            headers = {"OGC-NumberMatched": str(matched), "OGC-NumberReturned": str(len(pairs))}
            if following:
                headers["Link"] = f'<{following}>; rel="next"'
            name = f"{id}.parquet".encode("ascii", "replace").decode().replace('"', "")
            headers["Content-Disposition"] = f'attachment; filename="{name}"'
            return Response(_parquet(pairs), headers=headers, media_type=PARQUET)
        links: list[Link] = [
            {"rel": "self", "type": JSON, "href": here + query},
            {"rel": "item", "type": GEOJSON, "href": base.item(CUBES, id)},
        ]
        if following:
            links.append({"rel": "next", "type": JSON, "method": "GET", "href": following})
        page = {
            "item": id,
            "pairs": _records(pairs),
            "numberMatched": matched,
            "numberReturned": len(pairs),
            "read": read.read_at,
            "links": links,
        }
        return JSONBytes(orjson.dumps(page, option=orjson.OPT_UTC_Z))

    return router


def _where(asked: PairsParameters) -> PairFilter:
    start, end = (None, None) if asked.datetime is None else parse_datetime(asked.datetime)
    satellites = tuple(parameters.words(asked.satellites) or ())
    if len(satellites) > _LONGEST_LIST or not all(
        0 < len(name) <= 4 and name.isascii() and name.isalnum() and name == name.upper()
        for name in satellites
    ):
        raise InputError("satellites: accepted are mission and number, as L8,S1A,S2")
    dt_days = None
    if asked.dt_days is not None:
        try:
            least, most = (float(number) for number in asked.dt_days.split(","))
        except ValueError:
            least = most = -1.0
        if not 0 <= least <= most < float("inf"):
            raise InputError(
                f"dt_days {asked.dt_days[:40]!r} is not understood; "
                "accepted: least,most in days, 0 <= least <= most"
            )
        dt_days = (least, most)
    return PairFilter(start, end, tuple(sorted(set(satellites))), dt_days)


def _text(where: PairFilter) -> str:
    return f"{where.start} {where.end} {where.satellites} {where.dt_days}"


def _deep_row(connection: Connection, id: str) -> Any:
    """When and from which metadata the cube was read."""
    row = connection.execute(
        select(cubes.c.etag, cubes.c.read_at).where(cubes.c.id == id)
    ).one_or_none()
    if get_item(connection, CUBES, id) is None:
        raise NotFoundError(f"there is no item {id[:100]!r} in collection {CUBES!r}")
    if row is None:
        raise ConflictError(
            f"the image pairs of {id[:100]!r} are not known yet: its cube was not read; "
            "the operator does it by `firnline harvest --deep`"
        )
    return row


def _page(
    connection: Connection, id: str, where: PairFilter, after: int, limit: int
) -> tuple[PairColumns, int, bool]:
    """At most `limit` pairs after a rank, the rank of the last one, and whether there are more."""
    parts: list[PairColumns] = []
    last, left = after, limit
    for block in read_pairs(connection, id, where, after=after):
        if not left:
            return _joined(parts), last, True
        parts.append(block.pairs.take(slice(0, left)))
        last = int(block.rank[len(parts[-1]) - 1])
        if len(block.pairs) > left:
            return _joined(parts), last, True
        left -= len(parts[-1])
    return _joined(parts), last, False


def _joined(parts: Sequence[PairColumns]) -> PairColumns:
    if not parts:
        none: Any = np.empty(0, "U1")
        numbers: Any = np.empty(0, "f4")
        return PairColumns(
            np.empty(0, "i4"), np.empty(0, "M8[us]"), numbers, none, none, numbers,
            np.empty(0, "S1"),
        )  # fmt: skip
    return PairColumns(
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in PairColumns.__dataclass_fields__
        )
    )


def _records(pairs: PairColumns) -> list[dict[str, Any]]:
    """One object a pair; what is not known is null."""
    assert pairs.granule is not None
    return [
        {
            "granule": granule.decode("utf-8", "replace"),
            "mid_date": f"{mid_date}Z",
            "dt_days": dt if dt == dt else None,
            "satellites": [one, two],
            "valid_percentage": round(valid, 2) if valid == valid else None,
            "index": index,
        }
        for granule, mid_date, dt, one, two, valid, index in zip(
            pairs.granule.tolist(),
            np.datetime_as_string(pairs.mid_date, "us").tolist(),
            pairs.dt_days.tolist(),
            pairs.satellite_1.tolist(),
            pairs.satellite_2.tolist(),
            pairs.valid.tolist(),
            pairs.position.tolist(),
            strict=True,
        )
    ]


def _parquet(pairs: PairColumns) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    assert pairs.granule is not None

    def numbers(values: Any) -> pa.Array:
        return pa.array(values, pa.float32(), mask=np.isnan(values))

    table = pa.table(
        {
            "granule": pa.array([n.decode("utf-8", "replace") for n in pairs.granule.tolist()]),
            "mid_date": pa.array(pairs.mid_date, pa.timestamp("us")).cast(
                pa.timestamp("us", "UTC")
            ),
            "dt_days": numbers(pairs.dt_days),
            "satellite_1": pa.array(pairs.satellite_1.tolist(), pa.string()),
            "satellite_2": pa.array(pairs.satellite_2.tolist(), pa.string()),
            "valid_percentage": numbers(pairs.valid),
            "index": pa.array(pairs.position, pa.int32()),
        }
    )
    out = io.BytesIO()
    pq.write_table(table, out, compression="zstd")
    return out.getvalue()


def _following(request: Request, here: str, token: str) -> str:
    asked = [
        (name, value)
        for name, value in parse_qsl(request.url.query, keep_blank_values=True)
        if name != "token"
    ]
    return f"{here}?{urlencode([*asked, ('token', token)])}"


def _encode(rank: int, question: bytes, key: bytes) -> str:
    """The token of the page after a rank, sealed for its question and the cube as it was read."""
    position = rank.to_bytes(4, "big")
    return urlsafe_b64encode(_seal(position, question, key) + position).decode()


def _decode(token: str, question: bytes, key: bytes) -> int:
    try:
        sealed = urlsafe_b64decode(token.encode("ascii"))
    except (UnicodeEncodeError, binascii.Error):
        sealed = b""
    seal, position = sealed[:_SEAL], sealed[_SEAL:]
    if not compare_digest(seal, _seal(position, question, key)):
        raise TokenError(
            "token is not one that this server made for these pairs, or the cube was read again "
            "since; begin with the first page"
        )
    return int.from_bytes(position, "big")


def _seal(position: bytes, question: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(question + position, key=key, digest_size=_SEAL).digest()
