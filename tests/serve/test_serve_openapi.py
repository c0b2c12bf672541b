"""The OpenAPI document tells the truth: whatever is sent, no 5xx and no answer that it does not name."""

import schemathesis
from serve_tools import Server
from truth import check_operations


def test_schemathesis_finds_nothing(server: Server) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", server.app)
    assert check_operations(schema, server.http, "/", examples=40) == 8


def test_every_route_of_the_api_is_in_it(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    assert set(document["paths"]) == {
        "/v1/models",
        "/v1/models/{model}",
        "/v1/models/{model}/segment",
        "/v1/models/{model}/measure",
        "/v1/refine/{pipeline}/segment",
        "/v1/refine/{pipeline}/measure",
        "/healthz",
        "/readyz",
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["summary"], path
            assert "422" not in operation["responses"] or "application/problem+json" in operation["responses"]["422"]["content"]
