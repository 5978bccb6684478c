"""schemathesis asks all that the OpenAPI description says can be asked, and what it says can't."""

from __future__ import annotations

from contextlib import suppress

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import APIOperation, Case, GenerationMode
from schemathesis.checks import load_all_checks, not_a_server_error
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
EXAMPLES = {GenerationMode.POSITIVE: 12, GenerationMode.NEGATIVE: 8}


def failures(operation: APIOperation, mode: GenerationMode) -> list[str]:
    """What is wrong with the answers to requests that fit the description, or that don't."""
    found: list[str] = []

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES[mode],
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Case) -> None:
        try:
            case.call_and_validate(checks=CHECKS)
        except schemathesis.errors.SchemathesisError:
            raise
        except BaseExceptionGroup as failure:
            found.append(f"{operation.label}: {failure.exceptions}\n{case.as_curl_command()}")

    with suppress(Unsatisfiable):  # what has no parameters can't be asked wrongly
        ask()
    return found


def test_every_operation_answers_as_described(deep: Judged) -> None:
    """Never a 5xx, and no status, media type or body that the description does not have."""
    load_all_checks()
    schema = schemathesis.openapi.from_url(f"{deep.url}/api")
    operations = [each.ok() for each in schema.get_all_operations()]
    assert len(operations) > 25
    import time
    wrong = []
    for operation in operations:
        for mode in EXAMPLES:
            t=time.time()
            wrong += failures(operation, mode)
            print(operation.label, mode, time.time()-t)
    assert not wrong, "\n\n".join(wrong)
