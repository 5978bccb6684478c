"""schemathesis asks all that the OpenAPI description says can be asked, and what it says can't."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from hypothesis.strategies import one_of
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from firnline.api.app import create_app
from firnline.database import connect, put_collections, writing
from firnline.settings import Settings
from tests.api.conftest import CUBES, box, make_collection, make_item, put, serving
from tests.judges.conftest import Judged

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
SEARCHES = {
    "/search": ("GET", "POST"),
    "/aggregate": ("GET", "POST"),
    "/collections": ("GET",),
    "/collections/{collection_id}/items": ("GET",),
    "/collections/{collection_id}/queryables": ("GET",),
}
GENERATED = {GenerationMode.POSITIVE: 15, GenerationMode.NEGATIVE: 8}
"""Requests of an operation that fit the description, and that don't."""


def judged(
    operation: APIOperation, mode: GenerationMode, path_parameters: dict[str, str] | None
) -> tuple[set[int], list[str]]:
    """Statuses, and what is wrong with the answers; paths are made up where none are given."""
    statuses: set[int] = set()
    wrong: list[str] = []

    cases = [operation.as_strategy(generation_mode=mode, path_parameters=path_parameters)]
    if mode is GenerationMode.POSITIVE:  # what is given as an example is asked as well
        cases += operation.get_strategies_from_examples(path_parameters=path_parameters)

    @given(case=one_of(cases))
    @settings(
        max_examples=GENERATED[mode],
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Case) -> None:
        try:
            statuses.add(case.call_and_validate(checks=CHECKS).status_code)
        except FailureGroup as failure:
            reasons = [f"{each.title}: {each.message[:400]}" for each in failure.exceptions]
            wrong.append(f"{operation.label}: {reasons}\n{case.as_curl_command()}")

    with suppress(Unsatisfiable):  # what has no parameters can't be asked wrongly
        ask()
    return statuses, wrong


def test_every_operation_answers_as_described(deep: Judged) -> None:
    """Never a 5xx, and no status, media type or body that the description does not have."""
    load_all_checks()
    (job,) = httpx.get(f"{deep.url}/jobs").json()["jobs"]
    subset = httpx.get(f"{deep.url}/collections/subsets/items").json()["features"][0]
    west, south, east, north = subset["bbox"]
    place = {"lon": str((west + east) / 2), "lat": str((south + north) / 2)}
    tile = {"tms": "EPSG3413", "z": "0", "x": "0", "y": "0"}
    file = urlsplit(subset["assets"]["thumbnail"]["href"]).path.split("/", 4)[2:]
    there = [
        {"collection_id": "itslive-cubes", "item_id": deep.mirror.cubes[0].name},
        {"item_id": subset["id"]},
        *({"process_id": id} for id in ("echo", "materialise")),
        *({"tms": tms} for tms in ("WebMercatorQuad", "EPSG3413")),
        {"name": "turbo"},
        {"item_id": subset["id"], "asset": "cog_v", **place, **tile},
        {"job_id": job["jobID"]},
        dict(zip(("subset", "generation", "path"), file, strict=True)),
    ]
    schema = schemathesis.openapi.from_url(f"{deep.url}/api")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) > 30
    statuses: dict[str, set[int]] = {}
    wrong = []
    for operation in operations:
        names = {each.name for each in operation.path_parameters}
        paths = [{n: p[n] for n in names} for p in there if names and names <= p.keys()]
        assert bool(paths) == bool(names)
        for mode, path in product(GENERATED, [None, *paths]):
            answered, failed = judged(operation, mode, path)
            statuses.setdefault(operation.label, set()).update(answered)
            wrong += failed
    assert not wrong, "\n\n".join(wrong)
    # Requests got past the checks of parameters everywhere, but for the end of an ended job, and
    # for points, which are made up outside of the subset, and names of aggregations.
    points = "GET /collections/subsets/items/{item_id}/"
    refused = {label for label, each in statuses.items() if not each & {200, 201}}
    counted = {"GET /aggregate", "GET /collections/{collection_id}/aggregate"}
    assert refused <= {"DELETE /jobs/{job_id}", points + "series", points + "flowlines", *counted}
    assert statuses["DELETE /jobs/{job_id}"] >= {404, 409}


def test_searches_on_postgresql_answer_as_described(postgresql_url: str, tmp_path: Path) -> None:
    """Where the same request becomes another statement, on a database with stricter types."""
    load_all_checks()
    engine = connect(postgresql_url)
    with writing(engine) as connection:
        put_collections(connection, [make_collection(CUBES)])
    put(engine, [make_item(f"i{n}", box(n, 0, n + 1, 1), properties={"n": n}) for n in range(9)])
    with serving(create_app(Settings(data_dir=tmp_path, _env_file=None), engine)) as url:
        schema = schemathesis.openapi.from_url(f"{url}/api")
        wrong, answered = [], set()
        for path, methods in SEARCHES.items():
            there = {"collection_id": CUBES} if "{" in path else None
            for method, mode in product(methods, GENERATED):
                statuses, failed = judged(schema[path][method], mode, there)
                answered |= statuses
                wrong += failed
    engine.dispose()
    assert not wrong, "\n\n".join(wrong)
    assert answered >= {200, 400}
