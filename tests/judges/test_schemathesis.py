"""schemathesis asks all that the OpenAPI description says can be asked, and what it says can't."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from urllib.parse import urlsplit

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.judges.conftest import Judged

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
GENERATED = {GenerationMode.POSITIVE: 25, GenerationMode.NEGATIVE: 15}
"""Requests of an operation that fit the description, and that don't."""


def failures(
    operation: APIOperation, mode: GenerationMode, path_parameters: dict[str, str] | None
) -> list[str]:
    """What is wrong with the answers; paths are made up where no parameters are given."""
    found: list[str] = []

    @given(case=operation.as_strategy(generation_mode=mode, path_parameters=path_parameters))
    @settings(
        max_examples=GENERATED[mode],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Case) -> None:
        try:
            case.call_and_validate(checks=CHECKS)
        except FailureGroup as failure:
            reasons = "; ".join(
                " ".join(f"{each.title}: {each.message}".split())[:400]
                for each in failure.exceptions
            )
            found.append(f"{operation.label}: {reasons}\n{case.as_curl_command()}")

    with suppress(Unsatisfiable):  # what has no parameters can't be asked wrongly
        ask()
    return found


def test_every_operation_answers_as_described(deep: Judged) -> None:
    """Never a 5xx, and no status, media type or body that the description does not have."""
    load_all_checks()
    (job,) = httpx.get(f"{deep.url}/jobs").json()["jobs"]
    subset = httpx.get(f"{deep.url}/collections/subsets/items").json()["features"][0]
    file = urlsplit(subset["assets"]["thumbnail"]["href"]).path.split("/", 4)[2:]
    there = [
        {"collection_id": "itslive-cubes", "item_id": deep.mirror.cubes[0].name},
        *({"process_id": id} for id in ("echo", "materialise")),
        {"job_id": job["jobID"]},
        dict(zip(("subset", "generation", "path"), file, strict=True)),
    ]
    schema = schemathesis.openapi.from_url(f"{deep.url}/api")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) > 30
    wrong = []
    for operation in operations:
        names = {each.name for each in operation.path_parameters}
        paths = [{n: p[n] for n in names} for p in there if names and names <= p.keys()]
        assert bool(paths) == bool(names)
        for mode, path in product(GENERATED, [None, *paths]):
            wrong += failures(operation, mode, path)
    assert not wrong, "\n\n".join(wrong)
