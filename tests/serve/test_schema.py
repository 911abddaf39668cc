"""The OpenAPI description against the server: whatever it allows is answered as it says."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from starlette.testclient import TestClient

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

from genrec.serve.app import build_app
from tests.serve.conftest import MakeService

CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)


@pytest.fixture
def app(make_service: MakeService) -> Any:
    return build_app(make_service())


def ask_operation(client: TestClient, operation: Any, examples: int) -> Counter[int]:
    """How often each status came back; an answer that is not as described fails."""
    statuses: Counter[int] = Counter()

    @given(case=operation.as_strategy())
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def send(case: Any) -> None:
        words = case.as_transport_kwargs(base_url="http://testserver")
        words.pop("cookies")
        content = words.pop("data", None)
        if isinstance(content, bytes | str):
            words["content"] = content
        answer = client.request(**words)
        statuses[answer.status_code] += 1
        case.validate_response(answer, checks=list(CHECKS))

    send()
    return statuses


@pytest.mark.slow
def test_the_server_is_as_described(app: Any) -> None:
    schema = schemathesis.openapi.from_dict(app.openapi())
    operations = [result.ok() for result in schema.get_all_operations()]
    assert "POST /v1/recommendations" in {operation.label for operation in operations}
    # Its own transport would start and stop the application with each request.
    with TestClient(app) as client:
        for operation in operations:
            assert 503 not in ask_operation(client, operation, 25), operation.label
