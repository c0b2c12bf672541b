"""The OpenAPI document tells the truth: whatever is sent, no 5xx and no answer that it does not name."""

import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from serve_tools import Server

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


def test_schemathesis_finds_nothing(server: Server, image: bytes) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.app)
    operations = [one.ok() for one in schema.get_all_operations()]
    assert len(operations) >= 7
    for operation in operations:
        run(operation, server)


def run(operation: object, server: Server) -> None:
    from hypothesis import given

    @settings(max_examples=40, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy())  # type: ignore[attr-defined]
    def check(case: object) -> None:
        case.call_and_validate(checks=CHECKS, session=server.http)  # type: ignore[attr-defined]

    check()


def test_every_route_of_the_api_is_in_it(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/models",
        "/v1/models/{model}",
        "/v1/models/{model}/segment",
        "/v1/models/{model}/measure",
        "/v1/refine/{pipeline}/segment",
        "/healthz",
        "/readyz",
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert "422" not in operation["responses"] or "application/problem+json" in operation["responses"]["422"]["content"]
